//! Going on from where a dead daemon was: its workers live, its descriptors are in the fdstore, and
//! its state is on file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::fdstore::name;
use super::fleet::binds::answer_calls;
use super::fleet::isolation::Confinement;
use super::fleet::notify;
use super::fleet::tree::{self, Marks, Orphans};
use super::fleet::{until_end, wants_takeover};
use super::network::Adopted;
use super::store::{Process, State};
use super::{Daemon, log_error, now};
use crate::config::{AppName, AppSpec, Check, Listen, Log};
use crate::core::{Found, Worker, WorkerId, WorkerPhase};
use crate::exit::Exit;
use crate::logs::{Source, Stream};
use crate::sys::listen::local_address;
use crate::sys::procfs::{self, PipeId, Snapshot};
use crate::sys::spawn::NO_PROGRAM;
use crate::sys::{process, rescue, takeover};

/// How long a worker that was forked just before the daemon's death may take to come to its exec.
const EXEC: Duration = Duration::from_secs(1);
/// And how long the end of one that is of no use may take.
const END: Duration = Duration::from_secs(2);

/// A worker's process that lives.
struct Living {
    process: Process,
    pidfd: Arc<OwnedFd>,
    /// Its copies of listening sockets, where no other process has one.
    sockets: Vec<OwnedFd>,
    /// Why those cannot be had.
    refused: Option<String>,
    /// Its trapped calls cannot be answered.
    deaf: bool,
}

impl Daemon {
    /// Takes over what the state says, as far as it is still there.
    pub(super) fn adopt(&mut self, state: State) {
        let State {
            daemon, supervisor, ..
        } = state;
        self.supervisor = supervisor;
        self.store.take_over(daemon);
        self.ending = self.store.ending().is_some();
        self.calls.go_on_after(self.last_op());
        let apps: Vec<AppName> = self.supervisor.names().cloned().collect();
        let workers: Vec<Worker> = apps
            .iter()
            .flat_map(|app| self.supervisor.workers(app))
            .cloned()
            .collect();
        self.fleet
            .take_back_listeners(&workers, &self.supervisor, &mut self.fdstore);
        let processes = Snapshot::take();
        let mut living: HashMap<u64, Living> = workers
            .iter()
            .filter_map(|w| Some((w.id.generation, self.living(w, &processes)?)))
            .collect();
        // Where no worker serves and none will, the sockets stay with the process that holds them.
        if !(self.options.only_stop && living.is_empty()) {
            for app in &apps {
                self.adopt_sockets(app, &mut living);
            }
        }
        let mut found = BTreeMap::new();
        let mut out_of_reach = BTreeMap::new();
        let mut without_worker = Vec::new();
        for worker in &workers {
            let what = match living.remove(&worker.id.generation) {
                Some(living) => {
                    let (refused, none) = (living.refused.clone(), living.sockets.is_empty());
                    let what = self.adopt_worker(worker, living);
                    if let (Found::OutOfReach { .. }, true) = (&what, none) {
                        without_worker.push(worker.id.clone());
                        out_of_reach.extend(refused.map(|why| (worker.id.app.clone(), why)));
                    }
                    what
                }
                None => self.adopt_remains(worker),
            };
            found.insert(worker.id.clone(), what);
        }
        for (app, why) in out_of_reach {
            warn!(
                "{app}: the sockets of its workers cannot be taken back ({why}), so they are replaced, each by a ready one; \
                 with CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE) they could stay"
            );
        }
        self.fleet.isolation.adopted();
        let known: HashSet<u64> = workers.iter().map(|w| w.id.generation).collect();
        self.store
            .retain_processes(|generation| known.contains(&generation));
        self.adopt_output(&workers);
        let live = found
            .values()
            .filter(|f| {
                matches!(
                    f,
                    Found::Alive { .. } | Found::Deaf { .. } | Found::OutOfReach { .. }
                )
            })
            .count();
        info!(
            "{live} of {} workers of an earlier daemon are adopted",
            workers.len()
        );
        self.supervisor.revive(now(), &found);
        for app in &apps {
            self.network.relay_again(app, None);
        }
        // The worker listens on a socket of its own: rsup alone takes what comes to that of its slot,
        // and its drain would wait for that.
        for WorkerId { app, slot, .. } in without_worker {
            self.network.relay_again(&app, Some(slot));
        }
        if self.ending {
            // The earlier daemon may have died before it told anybody.
            self.stop_all_apps();
        }
    }

    /// The worker's process, if it lives and can be of use.
    fn living(&mut self, worker: &Worker, processes: &Snapshot) -> Option<Living> {
        let id = &worker.id;
        let early = worker.phase() == WorkerPhase::Spawning;
        let process = self.store.process(id.generation)?;
        let Process { pid, started } = process;
        // The pidfd is taken first and the identity checked after: then it cannot be a stranger's.
        let pidfd = Arc::new(process::pidfd_open(pid).ok()?);
        if !procfs::is_alive(pid, started) {
            return None;
        }
        let deadline = Instant::now() + EXEC;
        while early
            && !tree::runs_its_program(pid, id)
            && procfs::is_alive(pid, started)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (sockets, refused) = match rescue::listening_sockets(&pidfd, pid) {
            Ok(sockets) => (sockets, None),
            Err(why) => (Vec::new(), Some(why.to_string())),
        };
        let coming = early || worker.phase() == WorkerPhase::Starting;
        let below: Vec<u32> = processes
            .below(pid)
            .into_iter()
            .map(|(pid, _)| pid)
            .collect();
        let deaf = self.fleet.has_takeover(worker, &self.supervisor)
            && self.has_lost_its_calls(id, &pidfd, pid, &below);
        if (early && !tree::runs_its_program(pid, id)) || (coming && deaf && sockets.is_empty()) {
            // No process can answer its bind(2) any more; it has never served.
            info!(
                "{id}: pid {pid} cannot come to its socket any more; it is ended, and started anew"
            );
            end(process);
            // As if it had never been.
            self.store.forget_process(id.generation);
            return None;
        }
        Some(Living {
            process,
            pidfd,
            sockets,
            refused,
            deaf,
        })
    }

    /// The worker's trapped calls cannot be answered: the listener of its filter is gone, or the daemon died
    /// between receiving a call and answering it. A listener that only the worker itself holds is taken back.
    fn has_lost_its_calls(
        &mut self,
        id: &WorkerId,
        pidfd: &OwnedFd,
        pid: u32,
        below: &[u32],
    ) -> bool {
        let binds = name::binds(id.generation);
        if self.fdstore.get(&binds).is_none() {
            let of_worker = || takeover::take_back(pidfd, pid).ok().flatten();
            let of_descendant = || {
                below.iter().find_map(|pid| {
                    let pidfd = process::pidfd_open(*pid).ok()?;
                    takeover::take_back(&pidfd, *pid).ok().flatten()
                })
            };
            if let Some(listener) = of_worker().or_else(of_descendant) {
                self.fdstore.keep(binds.clone(), listener);
            }
        }
        let Some(listener) = self.fdstore.get(&binds) else {
            return true;
        };
        let tree: Vec<u32> = [&[pid], below].concat();
        takeover::left_unanswered(listener, &tree)
    }

    fn adopt_sockets(&mut self, app: &AppName, living: &mut HashMap<u64, Living>) {
        let Some((addresses, slots, file)) = self.supervisor.sockets(app) else {
            return;
        };
        let by_slot: HashMap<u16, u64> = self
            .supervisor
            .workers(app)
            .map(|w| (w.id.slot, w.id.generation))
            .collect();
        let of_worker = |address: &Listen, slot: u16| {
            let living = living.get(by_slot.get(&slot)?)?;
            let is_of_address = |fd: &&OwnedFd| match (address, local_address(fd)) {
                (Listen::Tcp { addr, .. }, Some(socket)) => addr.port() == socket.port(),
                (Listen::Unix(path), None) => {
                    rescue::unix_path(fd).is_some_and(|bound| bound == *path)
                }
                (Listen::Tcp { .. }, None) | (Listen::Unix(_), Some(_)) => false,
            };
            living.sockets.iter().find(is_of_address)?.try_clone().ok()
        };
        // One that has bound nothing yet has no socket in the group.
        let has_one = |w: &Worker| {
            let coming = matches!(w.phase(), WorkerPhase::Spawning | WorkerPhase::Starting);
            !(coming && w.port.bound.is_empty() && self.fleet.has_takeover(w, &self.supervisor))
        };
        let adopted = Adopted {
            slots,
            file,
            steering: self.supervisor.steering(app),
            others_live: self
                .supervisor
                .workers(app)
                .any(|w| living.contains_key(&w.id.generation) && has_one(w)),
        };
        self.network
            .adopt(app, &addresses, &adopted, of_worker, &mut self.fdstore);
    }

    fn adopt_worker(&mut self, worker: &Worker, living: Living) -> Found {
        let Living {
            process: Process { pid, .. },
            pidfd,
            sockets,
            refused,
            deaf,
        } = living;
        let id = &worker.id;
        let Some(revision) = self.supervisor.revision_of(worker).cloned() else {
            return Found::NeverStarted;
        };
        let spec = &revision.spec;
        let confinement = self.fleet.isolation.adopt(worker, spec, Some(pid));
        let notify = self.adopt_notify(worker, spec, &confinement);
        let marks = self.marks(worker, pid, &confinement);
        self.fleet
            .watch(id, pid, Some(pidfd.clone()), marks, notify, confinement);
        tokio::spawn(until_end(id.clone(), pid, pidfd, None, self.events.clone()));
        if let Some(listener) = self.fdstore.get(&name::binds(id.generation)) {
            let listener = takeover::Listener::from(listener);
            self.fleet.hold_listener(id, pid, &listener, &self.fdstore);
            tokio::spawn(answer_calls(id.clone(), listener, self.events.clone()));
        }
        if spec.max_memory.is_some() {
            self.fleet.limit_memory(id);
        }
        for addr in sockets.iter().filter_map(local_address) {
            self.fleet.saw_listening(id, spec, addr, &self.supervisor);
        }
        let kept = |address: &Listen| {
            sockets.iter().any(|fd| {
                local_address(fd)
                    .is_some_and(|s| address.tcp().is_some_and(|a| a.port() == s.port()))
            }) || self.kept_before.contains(&name::socket(
                &id.app,
                address,
                usize::from(id.slot) + 1,
            ))
        };
        for address in &spec.listen {
            self.network.handed(id, address);
        }
        // Its bind is still to come, and will be answered with a socket of the new group.
        let coming = matches!(
            worker.phase(),
            WorkerPhase::Spawning | WorkerPhase::Starting
        );
        let comes_for_it = coming && refused.is_none() && sockets.is_empty() && !deaf;
        let within_reach =
            comes_for_it || spec.listen.iter().filter(|l| l.tcp().is_some()).all(kept);
        match within_reach {
            false => Found::OutOfReach { pid },
            true if deaf => Found::Deaf { pid },
            true => Found::Alive { pid },
        }
    }

    /// What is left of a worker that ended while there was no daemon.
    fn adopt_remains(&mut self, worker: &Worker) -> Found {
        let id = &worker.id;
        let Some(Process { pid, .. }) = self.store.process(id.generation) else {
            return Found::NeverStarted;
        };
        // After an upgrade it may be a zombie of our own.
        let ours = process::pidfd_open(pid)
            .ok()
            .filter(|_| procfs::parent_of(pid) == Some(std::process::id()));
        let exit = ours
            .and_then(|pidfd| process::wait(pidfd).ok().flatten())
            .unwrap_or_else(|| self.fdstore.how_ended_now(pid));
        let Some(revision) = self.supervisor.revision_of(worker).cloned() else {
            return Found::NeverStarted;
        };
        let confinement = self.fleet.isolation.adopt(worker, &revision.spec, None);
        let exit = self.fleet.isolation.judge(&confinement, exit);
        let marks = self.marks(worker, pid, &confinement);
        self.fleet.watch(id, pid, None, marks, None, confinement);
        let descendants = self.fleet.leaves_descendants(id);
        if !descendants
            && matches!(
                worker.phase(),
                WorkerPhase::Spawning | WorkerPhase::Starting
            )
            && wants_takeover(&revision.spec)
            && self.fdstore.get(&name::binds(id.generation)).is_none()
        {
            // Its bind(2) failed because no process answered it, and that is not its fault.
            info!(
                "{id}: {exit} while there was no rsup, and could not come to its socket; it is started anew"
            );
            return Found::NeverStarted;
        } else if worker.phase() == WorkerPhase::Spawning && exit == Exit::Code(NO_PROGRAM) {
            info!("{id}: rsup was killed before its program ran; it is started anew");
            return Found::NeverStarted;
        }
        Found::Gone { exit, descendants }
    }

    fn marks(&self, worker: &Worker, leader: u32, confinement: &Confinement) -> Marks {
        let id = &worker.id;
        let output = [Stream::Out, Stream::Err]
            .into_iter()
            .filter_map(|stream| self.output_pipe(id, stream, u32::from(worker.instance), leader))
            .filter_map(|pipe| PipeId::of(pipe).ok())
            .collect();
        // Its parent is the reaper that its orphans will go to. After an upgrade that is this process.
        let reaper = procfs::parent_of(leader).unwrap_or_else(std::os::unix::process::parent_id);
        let ours = self.keeper == Some(reaper);
        let orphans = if reaper == std::process::id() {
            Orphans::Here
        } else {
            Orphans::Adopted { reaper, ours }
        };
        Marks {
            worker: id.clone(),
            leader,
            output,
            cgroup: confinement.leaf().cloned(),
            orphans,
        }
    }

    /// From the fdstore, or else from the worker itself.
    fn output_pipe(
        &self,
        id: &WorkerId,
        stream: Stream,
        instance: u32,
        pid: u32,
    ) -> Option<OwnedFd> {
        let number = match stream {
            Stream::Out => 1,
            Stream::Err => 2,
        };
        let name = name::output(id.generation, stream, id.app.as_str(), instance);
        self.fdstore
            .get(&name)
            .or_else(|| rescue::output_pipe(pid, number).ok())
    }

    fn adopt_notify(
        &self,
        worker: &Worker,
        spec: &AppSpec,
        confinement: &Confinement,
    ) -> Option<notify::Channel> {
        let id = &worker.id;
        if spec.readiness.check != Check::Notify {
            return None;
        }
        let datagrams = self.fdstore.get(&name::notify(id.generation))?;
        let node = self.fdstore.get(&name::node(id.generation))?;
        let ends = notify::Ends { datagrams, node };
        notify::Channel::listen(
            ends,
            &self.paths,
            id,
            confinement.owner(),
            self.events.clone(),
        )
        .inspect_err(|why| log_error(&format!("{id}: its notifications cannot be heard"), why))
        .ok()
    }

    /// Goes on reading the output of all workers: also what dead ones have left in their pipes.
    fn adopt_output(&mut self, workers: &[Worker]) {
        for worker in workers {
            let (id, instance) = (&worker.id, u32::from(worker.instance));
            let Some(pid) = self.store.process(id.generation).map(|p| p.pid) else {
                continue;
            };
            for stream in [Stream::Out, Stream::Err] {
                let name = name::output(id.generation, stream, id.app.as_str(), instance);
                if let Some(pipe) = self.output_pipe(id, stream, instance, pid) {
                    self.fdstore
                        .keep_exactly(&name, vec![(name.clone(), std::os::fd::AsFd::as_fd(&pipe))]);
                }
            }
        }
        let by_generation: HashMap<u64, &Worker> =
            workers.iter().map(|w| (w.id.generation, w)).collect();
        let names: Vec<String> = self.fdstore.names().map(str::to_owned).collect();
        for kept in names {
            let Some((generation, stream, app, instance)) = name::parse_output(&kept) else {
                continue;
            };
            let Some(pipe) = self.fdstore.share(&kept) else {
                continue;
            };
            let app = AppName::new(app);
            let revision = by_generation
                .get(&generation)
                .and_then(|w| self.supervisor.revision_of(w).map(|it| &**it))
                .or_else(|| self.supervisor.revision(&app));
            let settings = match revision.map(|revision| &revision.spec) {
                Some(spec) => self.output.settings(&app, &spec.log, spec.run_as.as_ref()),
                None => self.output.settings(&app, &Log::plain(), None),
            };
            self.output.pump.attach(
                Source {
                    app: app.shared(),
                    instance,
                    key: generation,
                },
                stream,
                pipe,
                &settings,
            );
            if !by_generation.contains_key(&generation) {
                self.output.await_silence(generation);
            }
        }
        self.output.pump.adopted();
    }
}

/// Ends a process that never served, with what is below it, and waits for that.
fn end(process: Process) {
    let mut all = procfs::descendants(process.pid);
    all.push((process.pid, process.started));
    let deadline = Instant::now() + END;
    while all
        .iter()
        .any(|(pid, started)| procfs::is_alive(*pid, *started))
        && Instant::now() < deadline
    {
        tree::signal(&all, nix::libc::SIGKILL);
        std::thread::sleep(Duration::from_millis(1));
    }
}
