//! `docker stop`, with and without enough time, and what a start finds afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::http::{get, local};
use crate::common::wait_until;
use crate::container::{Container, PORT, folder, put};
use crate::engine::{Engine, engine};
use crate::life::{reloads, stops_well};

fn slow_app(engine: &Arc<Engine>, options: &[&str]) -> Container {
    let folder = folder(engine);
    put(
        &folder,
        "supervisor.toml",
        "[app.api]\ncommand = [\"rsup\", \"sample-app\"]\ninstances = 2\nlisten = \"0.0.0.0:3001\"\nreadiness = \"/readiness\"\nkill_timeout = \"20s\"\n",
    );
    let mount = format!(
        "{}/supervisor.toml:/app/supervisor.toml:ro",
        folder.display()
    );
    let container = Container::run(engine, &[&["--volume", mount.as_str()], options].concat());
    container.wait_ready("api");
    container
}

/// Asks for an answer that takes so long; true once it has come.
fn slow_request(
    container: &Container,
    milliseconds: u32,
) -> std::thread::JoinHandle<Result<u16, String>> {
    container.inside(|| {
        std::thread::spawn(move || {
            get(local(PORT), &format!("/slow?ms={milliseconds}")).map(|answer| answer.status)
        })
    })
}

#[test]
fn slow_requests_finish_in_time() {
    let Some(engine) = engine() else { return };
    let container = slow_app(&engine, &[]);
    let requests: Vec<_> = (0..8).map(|_| slow_request(&container, 4000)).collect();
    wait_until("the app has read them all", || {
        container.under_way(PORT) == requests.len()
    });
    let began = Instant::now();
    stops_well(&container);
    assert!(
        began.elapsed() > Duration::from_secs(1),
        "it waited for them"
    );
    for request in requests {
        assert_eq!(request.join().unwrap(), Ok(200));
    }
    let log = container.log();
    assert!(log.contains("SIGTERM: no new connections"), "{log}");
}

#[test]
fn a_stop_that_is_cut_short_is_no_stop_by_command() {
    let Some(engine) = engine() else { return };
    let container = slow_app(&engine, &[]);
    let requests: Vec<_> = (0..8).map(|_| slow_request(&container, 15_000)).collect();
    wait_until("the app has read them all", || {
        container.under_way(PORT) == requests.len()
    });
    let (code, took) = container.stop(2);
    assert_eq!(code, 137, "the engine killed it: {}", container.log());
    assert!(took < Duration::from_secs(8), "{took:?}");
    for _ in 0..2 {
        container.docker(&["start"]);
        container.wait_ready("api");
        assert_eq!(container.get("/").status, 200);
        // It is no worse off than before.
        reloads(&container, PORT);
        let (code, _) = container.stop(30);
        assert_eq!(code, 0, "{}", container.log());
    }
}

/// What `docker kill` does, and the kernel when it lacks memory.
#[test]
fn a_start_after_a_kill() {
    let Some(engine) = engine() else { return };
    let container = slow_app(&engine, &[]);
    container.docker(&["kill"]);
    assert_eq!(container.wait_end(), 137);
    container.docker(&["start"]);
    container.wait_ready("api");
    assert_eq!(container.get("/").status, 200);
    stops_well(&container);
}
