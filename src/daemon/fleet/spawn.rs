//! Starts workers, and watches each until its end.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::binds::answer_calls;
use super::census::{Age, Census};
use super::command::{c_environment, c_strings, ended, executed};
use super::forks::Fork;
use super::isolation::{self, Confinement};
use super::tree::{self, Marks, Orphans};
use super::{Drain, Event, Events, Fleet, Process, log_error, notify};
use crate::config::{AppSpec, Check, Listen};
use crate::core::{Exit, Input, Revision, WorkerId};
use crate::daemon::fdstore::{FdStore, name};
use crate::daemon::output::Output;
use crate::logs::{self, Source, Stream};
use crate::sys::cgroup::Leaf;
use crate::sys::procfs::{self, PipeId, StartTime};
use crate::sys::spawn::{self, Child, ExecReport, Plan};
use crate::sys::takeover;
use crate::sys::{capability, process};

/// How long the keeper may take to tell how a process ended.
const KEEPER_PATIENCE: Duration = Duration::from_secs(1);

/// A worker's process, or what is left of it.
pub struct Running {
    pub id: WorkerId,
    pub pid: u32,
    /// None for one that was gone when this daemon came.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// The process itself is gone; descendants may live on.
    pub exited: bool,
    pub marks: Marks,
    /// Descendants as last seen alive: those that have shed every mark are known by this alone.
    pub tree: Vec<(u32, StartTime)>,
    /// Set when what is left of the tree must be killed.
    pub kill: Arc<AtomicBool>,
    /// When a notification of another process was last logged.
    pub stranger_logged: Option<Instant>,
    _notify: Option<notify::Channel>,
    /// Of the worker and of what is run for it.
    pub confinement: Confinement,
    pub(super) drain: Option<Drain>,
}

/// A process that waits before its exec.
pub struct Held {
    pub worker: WorkerId,
    pub process: Process,
    pidfd: Arc<OwnedFd>,
    exec: ExecReport,
}

impl Running {
    /// Notes who descends from the worker now.
    pub fn remember_tree(&mut self, census: &Census) {
        if !self.exited {
            self.tree = census.all().below(self.pid);
        }
    }

    /// # Errors
    /// `ESRCH` when the process is gone, and as `pidfd_send_signal(2)`.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => process::signal(pidfd, signal),
            None => Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH)),
        }
    }

    pub fn signal_tree(&mut self, signal: i32, census: &Census) {
        if signal == nix::libc::SIGKILL {
            self.kill.store(true, Ordering::Relaxed);
            // At one stroke, where the kernel can; what follows finds no process then.
            let _ = self.confinement.leaf().map(Leaf::kill);
        }
        let _ = self.signal(signal);
        tree::signal(&self.remains(census), signal);
    }

    /// Whether the process is the worker or one below it.
    pub fn owns(&self, pid: u32) -> bool {
        pid == self.pid
            || procfs::session_of(pid).is_ok_and(|session| session == self.pid)
            || self
                .confinement
                .leaf()
                .is_some_and(|leaf| leaf.members().contains(&pid))
            || procfs::descendants(self.pid)
                .iter()
                .any(|(below, _)| *below == pid)
    }

    /// The process is gone; waits for its descendants.
    pub fn await_end_of_tree(&self, census: Census, events: Events) {
        let (worker, marks, tree, kill) = (
            self.id.clone(),
            self.marks.clone(),
            self.tree.clone(),
            self.kill.clone(),
        );
        tokio::spawn(async move {
            tree::until_gone(&marks, &tree, &kill, &census).await;
            let _ = events.send(Event::Input(Input::TreeGone { worker }));
        });
    }

    /// What is left of the worker's tree.
    pub fn remains(&self, census: &Census) -> Vec<(u32, StartTime)> {
        tree::remains(&self.marks, &self.tree, census, Age::Turn)
    }
}

/// The variables that rsup adds. `PORT` follows `listen` unless the configuration sets it; one that
/// the caller's shell happened to have does not count. `inherits`: see [`Fleet::way_to_sockets`].
pub fn environment(
    id: &WorkerId,
    instance: u16,
    revision: &Revision,
    inherits: bool,
) -> BTreeMap<String, String> {
    let spec = &revision.spec;
    let mut env = revision.env();
    isolation::follow_user(&mut env, spec);
    // Of the shell that gave the command.
    for name in ["_", "OLDPWD", "PWD", "SHLVL"] {
        if !spec.env.contains_key(name) {
            env.remove(name);
        }
    }
    if let Some(cwd) = spec.cwd.to_str() {
        env.entry("PWD".into()).or_insert_with(|| cwd.to_owned());
    }
    if let Some(port) = spec.listen.iter().find_map(Listen::tcp).map(|a| a.port()) {
        env.insert(
            "PORT".into(),
            spec.env
                .get("PORT")
                .cloned()
                .unwrap_or_else(|| port.to_string()),
        );
    }
    env.entry("NODE_APP_INSTANCE".into())
        .or_insert_with(|| instance.to_string());
    env.insert("RSUP_APP".into(), spec.name.to_string());
    env.insert("RSUP_INSTANCE".into(), instance.to_string());
    env.insert("RSUP_SLOT".into(), id.slot.to_string());
    env.insert("RSUP_WORKER".into(), id.to_string());
    env.insert("RSUP_REVISION".into(), revision.number.to_string());
    if inherits {
        let names: Vec<String> = spec
            .listen
            .iter()
            .enumerate()
            .map(|(at, _)| format!("{}-{at}", spec.name))
            .collect();
        env.insert("LISTEN_FDNAMES".into(), names.join(":"));
    }
    env
}

impl Fleet {
    /// Forks, with the sockets that the worker inherits. The process waits before its exec until it is
    /// [let go](Self::let_go).
    ///
    /// # Errors
    /// What went wrong before the exec, as a sentence about the worker.
    pub fn spawn(
        &mut self,
        fork: &Fork,
        sockets: Vec<OwnedFd>,
        fdstore: &mut FdStore,
        output: &Output,
    ) -> Result<Held, String> {
        let confinement = self.isolation.of(&fork.worker, &fork.revision.spec)?;
        self.spawn_in(&confinement, fork, sockets, fdstore, output)
            .inspect_err(|_| self.isolation.forget(&confinement))
    }

    fn spawn_in(
        &mut self,
        confinement: &Confinement,
        fork: &Fork,
        sockets: Vec<OwnedFd>,
        fdstore: &mut FdStore,
        to: &Output,
    ) -> Result<Held, String> {
        let Fork {
            worker: id,
            instance,
            revision,
            hide_port,
        } = fork;
        let (instance, hide_port) = (*instance, *hide_port);
        let spec = &revision.spec;
        let settings = to.settings(&spec.name, &spec.log, spec.run_as.as_ref());
        let (out, out_write) = logs::pipe().map_err(|why| {
            format!(
                "no pipe for its output: {}",
                crate::sys::limits::or_files(&why)
            )
        })?;
        let (err, err_write) = logs::pipe().map_err(|why| {
            format!(
                "no pipe for its errors: {}",
                crate::sys::limits::or_files(&why)
            )
        })?;
        let known = |why| format!("its pipes cannot be looked at: {why}");
        let output = vec![
            PipeId::of(&out).map_err(known)?,
            PipeId::of(&err).map_err(known)?,
        ];
        // The pump and the fdstore share them: descriptors are scarce with thousands of workers.
        let (out, err) = (Arc::new(out), Arc::new(err));
        let inherits = self.way_to_sockets(spec).inherits();
        let mut env = environment(id, instance, revision, inherits);
        let mut plan = Plan::new(
            c_strings(spec.command.iter().map(String::as_str))?,
            spec.cwd_resolved.clone(),
            out_write,
            err_write,
        );
        plan.listen = sockets;
        if wants_takeover(spec)
            && let Some(&takeover::Support::Yes { needs_no_new_privs }) =
                self.takeover.of(&self.isolation, spec)
        {
            plan.takeover = true;
            plan.trap_connect = hide_port;
            plan.no_new_privs = needs_no_new_privs;
        }
        confinement.apply(&mut plan)?;
        if let Some(owner) = confinement.owner() {
            isolation::give(&plan.stdout, owner)
                .and_then(|()| isolation::give(&plan.stderr, owner))
                .map_err(|why| format!("its pipes cannot be given to its user: {why}"))?;
        }
        plan.allow_tracer = !capability::may_trace_all();
        let mut channel = None;
        if spec.readiness.check == Check::Notify {
            let owner = confinement.owner();
            let failed = |why: String| format!("no channel for its notification: {why}");
            let (ends, theirs) = notify::Ends::open(&self.paths, id, owner).map_err(failed)?;
            fdstore.keep(name::notify(id.generation), &ends.datagrams);
            fdstore.keep(name::node(id.generation), &ends.node);
            let ours = notify::Channel::listen(ends, &self.paths, id, owner, self.events.clone())
                .map_err(|why| failed(why.to_string()))?;
            env.insert("NOTIFY_SOCKET".into(), ours.path().display().to_string());
            plan.extra.push((theirs, "NODE_CHANNEL_FD".into()));
            channel = Some(ours);
        }
        plan.env = c_environment(&env)?;
        for (stream, pipe) in [(Stream::Out, &out), (Stream::Err, &err)] {
            let app = spec.name.as_str();
            let name = name::output(id.generation, stream, app, u32::from(instance));
            fdstore.keep_shared(name, pipe.clone());
        }
        plan.held = true;
        let child = spawn::spawn(plan).map_err(|why| why.to_string())?;
        let source = |key| Source {
            app: spec.name.shared(),
            instance: u32::from(instance),
            key,
        };
        to.pump
            .attach(source(id.generation), Stream::Out, out, &settings);
        to.pump
            .attach(source(id.generation), Stream::Err, err, &settings);
        if spec.max_memory.is_some() {
            self.limit_memory(id);
        }
        let Child {
            pid,
            started,
            pidfd,
            exec,
        } = child;
        let marks = Marks {
            worker: id.clone(),
            leader: pid,
            output,
            cgroup: confinement.leaf().cloned(),
            orphans: Orphans::Here,
        };
        let pidfd = Arc::new(pidfd);
        self.watch(
            id,
            pid,
            Some(pidfd.clone()),
            marks,
            channel,
            confinement.clone(),
        );
        Ok(Held {
            worker: id.clone(),
            process: Process { pid, started },
            pidfd,
            exec,
        })
    }

    /// Written down, it may go on; that its program runs, and its end, come later as inputs.
    pub fn let_go(&self, held: Held) {
        let Held {
            worker,
            process: Process { pid, .. },
            pidfd,
            exec,
        } = held;
        // One that is gone is noticed by its end.
        let _ = exec.go();
        let events = self.events.clone();
        tokio::spawn(until_end(worker, pid, pidfd, Some(exec), events));
    }

    /// A worker of this daemon or an earlier one; without a pidfd, one that has ended.
    pub fn watch(
        &mut self,
        id: &WorkerId,
        pid: u32,
        pidfd: Option<Arc<OwnedFd>>,
        marks: Marks,
        notify: Option<notify::Channel>,
        confinement: Confinement,
    ) {
        let exited = pidfd.is_none();
        if !exited {
            self.census.worker_begins(pid);
        }
        let running = Running {
            id: id.clone(),
            pid,
            pidfd,
            exited,
            marks,
            tree: Vec::new(),
            kill: Arc::default(),
            stranger_logged: None,
            _notify: notify,
            confinement,
            drain: None,
        };
        self.running.insert(id.generation, running);
    }

    /// The worker's program runs, and its trapped calls arrive at the listener.
    pub fn on_executed(
        &mut self,
        worker: WorkerId,
        pid: u32,
        listener: Option<takeover::Listener>,
        fdstore: &mut FdStore,
    ) -> Input {
        if let Some(listener) = listener {
            self.keep_listener(&worker, pid, &listener, fdstore);
            tokio::spawn(answer_calls(worker.clone(), listener, self.events.clone()));
        }
        Input::Spawned { worker, pid }
    }

    /// Adds to the end of a worker what is left of its tree, and waits for that to go.
    pub fn complete_end(&mut self, input: Input) -> Input {
        let Input::Exited { worker, exit, .. } = input else {
            return input;
        };
        let Some(running) = self.running.get_mut(&worker.generation) else {
            return Input::Exited {
                worker,
                exit,
                descendants: false,
            };
        };
        running.exited = true;
        self.census.worker_ended(running.pid);
        let exit = self.isolation.judge(&running.confinement, exit);
        let descendants = self.leaves_descendants(&worker);
        Input::Exited {
            worker,
            exit,
            descendants,
        }
    }

    /// Whether an ended worker leaves descendants; if so, their end is reported.
    pub fn leaves_descendants(&self, worker: &WorkerId) -> bool {
        let Some(running) = self.running.get(&worker.generation) else {
            return false;
        };
        let descendants = !running.remains(&self.census).is_empty();
        if descendants {
            running.await_end_of_tree(self.census.clone(), self.events.clone());
        }
        descendants
    }

    /// A child has ended.
    pub fn reap_soon(&mut self) {
        if self.reaping.is_due() {
            self.reap();
        }
    }

    /// Reaps zombies that no task waits for: orphans of workers, which came to us.
    pub fn reap(&mut self) {
        let begun = Instant::now();
        let known = |pid| self.census.is_worker(pid) || self.commands.contains(pid);
        if let Err(why) = process::reap_orphans(known) {
            log_error("cannot wait for orphans", why);
        }
        self.reaping.done(begun.elapsed());
    }

    /// How the workers of the app come to their sockets.
    pub fn way_to_sockets(&self, spec: &AppSpec) -> Way {
        Way::of(spec, self.takeover.of(&self.isolation, spec))
    }
}

/// How the workers of an app come to their listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// There are none.
    Plain,
    /// Their `bind(2)` is answered with a socket of ours.
    Takeover,
    /// `LISTEN_FDS`, as `socket_activation` says. A `bind(2)` is answered as well, where that is possible.
    Configured,
    /// `LISTEN_FDS`, because takeover is not possible here.
    NoTakeover,
    /// `LISTEN_FDS`, because takeover is for TCP, and the app has a unix socket.
    Unix,
}

impl Way {
    fn of(spec: &AppSpec, takeover: Option<&takeover::Support>) -> Self {
        match takeover {
            _ if spec.listen.is_empty() => Self::Plain,
            _ if spec.socket_activation => Self::Configured,
            _ if spec.listen.iter().any(|l| l.tcp().is_none()) => Self::Unix,
            Some(takeover::Support::No { .. }) => Self::NoTakeover,
            // Before the next worker of that user it is tried again: after rsup's death, say.
            Some(takeover::Support::Yes { .. }) | None => Self::Takeover,
        }
    }

    /// Whether workers inherit their sockets. Not by default: there are servers (uWSGI) that take every
    /// inherited socket for one of their own protocol, whatever they were told to serve.
    pub fn inherits(self) -> bool {
        match self {
            Self::Plain | Self::Takeover => false,
            Self::Configured | Self::NoTakeover | Self::Unix => true,
        }
    }

    /// For `describe`.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Takeover => Some("by takeover: rsup answers the workers' bind(2)"),
            Self::Configured => Some("by LISTEN_FDS: socket_activation = true"),
            Self::NoTakeover => Some("by LISTEN_FDS: takeover of bind(2) is not possible here"),
            Self::Unix => Some(
                "by LISTEN_FDS: takeover of bind(2) is for TCP, and one address is a unix socket",
            ),
        }
    }
}

/// An app with a TCP address may want to bind it itself.
pub fn wants_takeover(spec: &AppSpec) -> bool {
    spec.listen.iter().any(|l| l.tcp().is_some())
}

/// Without a report, the program runs already.
pub async fn until_end(
    id: WorkerId,
    pid: u32,
    pidfd: Arc<OwnedFd>,
    exec: Option<ExecReport>,
    events: Events,
) {
    let mut failed = false;
    if let Some(exec) = exec {
        let _ = events.send(match executed(exec).await {
            Ok(listener) => Event::Executed {
                worker: id.clone(),
                pid,
                listener,
            },
            Err(reason) => {
                failed = true;
                Event::Input(Input::SpawnFailed {
                    worker: id.clone(),
                    reason,
                })
            }
        });
    }
    let mut exit = ended(&pidfd).await;
    if exit == Exit::Unknown {
        // Not our child: an earlier daemon's, which our keeper may have inherited.
        let (answer, told) = oneshot::channel();
        let _ = events.send(Event::HowEnded { pid, answer });
        exit = tokio::time::timeout(KEEPER_PATIENCE, told)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Exit::Unknown);
    }
    if !failed {
        // The loop looks for descendants.
        let _ = events.send(Event::Input(Input::Exited {
            worker: id,
            exit,
            descendants: false,
        }));
    }
}
