//! A container, and requests to what runs in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::common::http::{Answer, get, local};
use crate::common::load::Load;
use crate::common::{Run, is_ready, pids, wait_for};
use crate::engine::Engine;
use crate::image;

/// As in the example.
pub const PORT: u16 = 3001;
pub const ADMIN: u16 = 9700;

pub struct Container {
    engine: Arc<Engine>,
    name: String,
    /// Its network is its own, and the test goes there to speak with it.
    own_network: bool,
}

/// A folder of the test's own, for what is mounted.
pub fn folder(engine: &Engine) -> PathBuf {
    let folder = engine.folder().join(format!("mounted-{}", number()));
    fs::create_dir(&folder).unwrap();
    folder
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Container {
    /// `docker run` of the example's image with more options, in a network of its own: that has a loopback interface
    /// and all ports.
    #[track_caller]
    pub fn run(engine: &Arc<Engine>, options: &[&str]) -> Self {
        Self::run_in(engine, true, options)
    }

    /// The same in the network of the host.
    #[track_caller]
    pub fn run_on_host(engine: &Arc<Engine>, options: &[&str]) -> Self {
        Self::run_in(engine, false, options)
    }

    #[track_caller]
    fn run_in(engine: &Arc<Engine>, own_network: bool, options: &[&str]) -> Self {
        let container = Self {
            engine: engine.clone(),
            name: format!("test-{}", number()),
            own_network,
        };
        let network = if own_network { "none" } else { "host" };
        let words = [
            "run",
            "--detach",
            "--name",
            &container.name,
            "--network",
            network,
        ];
        engine.ok(&[&words[..], options, &[image::NAME]].concat());
        container
    }

    /// A verb of docker with this container as its object. It must succeed.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> String {
        self.engine.ok(&[words, &[&self.name]].concat())
    }

    /// `docker exec`.
    #[track_caller]
    pub fn exec(&self, words: &[&str]) -> Run {
        self.engine
            .docker(&[&["exec", &self.name], words].concat())
            .unwrap_or_else(|why| panic!("{why}"))
    }

    #[track_caller]
    pub fn rsup(&self, words: &[&str]) -> Run {
        let run = self.exec(&[&["rsup"], words].concat());
        assert_eq!(
            run.code,
            0,
            "rsup {words:?}\nstdout: {}\nstderr: {}\n{}",
            run.out,
            run.err,
            self.log()
        );
        run
    }

    /// What was written to stdout and stderr, since the first start.
    pub fn log(&self) -> String {
        self.engine
            .docker(&["logs", &self.name])
            .map(|run| run.out + &run.err)
            .unwrap_or_else(|why| why)
    }

    /// Waits until the words were logged so many times.
    #[track_caller]
    pub fn wait_logged(&self, words: &str, times: usize) {
        wait_for(&format!("`{words}` in the log, {times} times"), || {
            let log = self.log();
            if log.matches(words).count() >= times {
                Ok(())
            } else {
                Err(log)
            }
        });
    }

    /// `.State` of `docker inspect`.
    #[track_caller]
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.docker(&["inspect", "--format", "{{json .State}}"])).unwrap()
    }

    /// The app's entry in `rsup list --json`.
    #[track_caller]
    pub fn view(&self, app: &str) -> Value {
        let list = self.rsup(&["list", "--json"]).json();
        list.as_array()
            .and_then(|apps| apps.iter().find(|a| a["name"] == app))
            .cloned()
            .unwrap_or(Value::Null)
    }

    #[track_caller]
    pub fn wait_view(
        &self,
        app: &str,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        wait_for(what, || {
            let run = self.exec(&["rsup", "list", "--json"]);
            if run.code != 0 {
                return Err(format!(
                    "{}{}\n{}\n{}",
                    run.out,
                    run.err,
                    self.state(),
                    self.log()
                ));
            }
            let list = run.json();
            let view = list
                .as_array()
                .and_then(|apps| apps.iter().find(|a| a["name"] == app))
                .cloned()
                .unwrap_or(Value::Null);
            if wanted(&view) {
                return Ok(view);
            }
            // Not too often: it takes the engine ten processes to run one.
            std::thread::sleep(Duration::from_millis(100));
            Err(format!("{view}\n{}", self.log()))
        })
    }

    /// Waits until all workers are ready and the app answers.
    #[track_caller]
    pub fn wait_ready(&self, app: &str) -> Value {
        self.wait_view(app, "the app is ready", is_ready)
    }

    /// Does it in the container's network. Threads that it starts stay there.
    #[track_caller]
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        if !self.own_network {
            return act();
        }
        let path = self
            .engine
            .proc()
            .join(self.state()["Pid"].to_string())
            .join("ns/net");
        let network = fs::File::open(&path)
            .unwrap_or_else(|why| panic!("{}: {why}\n{}", path.display(), self.log()));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(network, CloneFlags::CLONE_NEWNET).expect("enter the container's network");
                act()
            });
            thread
                .join()
                .unwrap_or_else(|why| std::panic::resume_unwind(why))
        })
    }

    #[track_caller]
    pub fn get_at(&self, port: u16, path: &str) -> Answer {
        self.inside(|| get(local(port), path))
            .unwrap_or_else(|why| panic!("{path}: {why}\n{}", self.log()))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.get_at(PORT, path)
    }

    /// Load on the app; it stays in this network, whatever becomes of the container.
    pub fn load(&self, port: u16, path: &str) -> Load {
        self.inside(|| Load::start(port, path))
    }

    /// Connections on the port that are open and of which everything sent was read: those that wait for an answer.
    #[track_caller]
    pub fn under_way(&self, port: u16) -> usize {
        let path = self
            .engine
            .proc()
            .join(self.state()["Pid"].to_string())
            .join("net/tcp");
        let table =
            fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        // proc_pid_net(5): local address, remote address, state (01 is ESTABLISHED), tx_queue:rx_queue.
        let lines = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let wanted = format!(":{port:04X}");
        lines
            .filter(|line| {
                line[1].ends_with(&wanted) && line[3] == "01" && line[4].ends_with(":00000000")
            })
            .count()
    }

    /// `docker stop`, with so many seconds; then the exit code, and how long it took.
    #[track_caller]
    pub fn stop(&self, seconds: u32) -> (i64, Duration) {
        let began = std::time::Instant::now();
        self.docker(&["stop", "--time", &seconds.to_string()]);
        let took = began.elapsed();
        (self.state()["ExitCode"].as_i64().unwrap(), took)
    }

    /// Waits until it has ended by itself; its exit code.
    #[track_caller]
    pub fn wait_end(&self) -> i64 {
        wait_for("the end of the container", || {
            let state = self.state();
            if state["Running"] == false {
                Ok(state["ExitCode"].as_i64().unwrap())
            } else {
                Err(format!("{state}\n{}", self.log()))
            }
        })
    }

    /// All pids of live workers, as seen inside.
    #[track_caller]
    pub fn pids(&self, app: &str) -> std::collections::BTreeSet<u32> {
        pids(&self.view(app))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = self
                .engine
                .docker(&["inspect", "--format", "{{json .State}}", &self.name]);
            eprintln!("---- {}: {state:?}\n{}", self.name, self.log());
        }
        let _ = self
            .engine
            .docker(&["rm", "--force", "--volumes", &self.name]);
    }
}

/// Writes a file for everybody to read.
pub fn put(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}
