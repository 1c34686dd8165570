//! The daemon is killed, and the next one goes on from what was written down.

use super::super::restart::RestartState;
use super::super::rollout::Phase;
use super::super::worker::State;
use super::*;

/// When the daemon is killed.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    Never,
    /// After this many inputs more.
    After(u32),
    /// At one of so many inputs.
    Often(u32),
}

impl Death {
    pub fn comes(&mut self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Never => false,
            Self::After(0) => {
                *self = Self::Never;
                true
            }
            Self::After(more) => {
                *more -= 1;
                false
            }
            Self::Often(of) => random.u32(..*of) == 0,
        }
    }
}

impl World {
    /// Some of the effects of the last input are carried out, the rest is lost.
    pub fn die(&mut self) {
        let before = put_down(&self.core);
        let effects = self.effects();
        let done = self.random.usize(..=effects.len());
        for effect in &effects[..done] {
            self.carry_out(effect);
        }
        let after = done == effects.len() && self.random.bool();
        let written = if after { put_down(&self.core) } else { before };
        self.between();
        self.begin_again(&written);
        self.come_back();
    }

    /// Another daemon has another file.
    fn begin_again(&mut self, written: &str) {
        self.core = read_back(written);
        self.file = Written::default();
    }

    /// While there is no daemon, workers end; what they say waits.
    pub fn between(&mut self) {
        let away = if self.random.u8(..) < 200 {
            self.random.u64(..400)
        } else {
            self.random.u64(..20_000)
        };
        let back = self.now + ms(away);
        for (at, input) in std::mem::take(&mut self.coming) {
            match &input {
                Input::Exited {
                    worker,
                    exit,
                    descendants,
                } if at.0 <= back => {
                    if let Some(process) = self.processes.get_mut(worker).filter(|p| p.alive) {
                        process.ended(*exit, *descendants);
                    }
                }
                Input::TreeGone { worker } if at.0 <= back => {
                    if let Some(process) = self.processes.get_mut(worker) {
                        process.left = false;
                    }
                }
                Input::Exited { .. }
                | Input::TreeGone { .. }
                | Input::Notified { .. }
                | Input::Bound { .. }
                | Input::BoundElsewhere { .. }
                | Input::Refused { .. }
                | Input::Memory { .. } => {
                    self.coming.insert(at, input);
                }
                // Who would have answered is no more.
                Input::Request { .. }
                | Input::Listening { .. }
                | Input::Forked { .. }
                | Input::Spawned { .. }
                | Input::SpawnFailed { .. }
                | Input::Probed { .. }
                | Input::Drained { .. }
                | Input::NotProbed { .. }
                | Input::Traces { .. }
                | Input::ForceStop
                | Input::Tick => {}
            }
        }
        self.now = back;
    }

    /// What a new daemon knows, and does first.
    pub fn come_back(&mut self) {
        self.reviving = true;
        self.relays.values_mut().for_each(|on| *on = false);
        let apps = &self.core.apps;
        self.listening.retain(|name, _| apps.contains_key(name));
        self.tables.retain(|name, _| apps.contains_key(name));
        self.relays.retain(|(name, _), _| apps.contains_key(name));
        let ops: BTreeSet<OpId> = apps.values().flat_map(App::ops).collect();
        assert_eq!(self.core.last_op(), ops.last().copied());
        let finished = &self.finished;
        self.asked
            .retain(|op, _| finished.contains_key(op) || ops.contains(op));
        let workers: Vec<Worker> = self
            .core
            .apps
            .values()
            .flat_map(App::workers)
            .cloned()
            .collect();
        let found: BTreeMap<WorkerId, Found> = workers
            .into_iter()
            .map(|w| (w.id.clone(), self.find(&w.id, &w.state)))
            .collect();
        let core = &self.core;
        let forgotten: Vec<WorkerId> = self
            .processes
            .keys()
            .filter(|id| core.worker(id).is_none())
            .cloned()
            .collect();
        for id in forgotten {
            let process = self.processes.remove(&id).unwrap();
            assert!(
                !process.alive && !process.left,
                "{id} lives and no daemon knows it"
            );
            self.gone.push(id);
        }
        let was = self.core.apps.clone();
        self.before = checks::before(&self.core);
        self.core.revive(self.now, &found);
        let effects = self.effects();
        in_order(&effects);
        for effect in &effects {
            self.carry_out(effect);
        }
        checks::step(self, &Input::Tick, &effects);
        for (name, was) in &was {
            self.nothing_lost(name, was, &found);
        }
        self.reviving = false;
        if self
            .core
            .poll_timeout(self.now)
            .is_some_and(|at| at <= self.now)
        {
            self.handle(Input::Tick);
        }
    }

    fn find(&mut self, id: &WorkerId, state: &State) -> Found {
        let Some(process) = self.processes.get_mut(id) else {
            return Found::NeverStarted;
        };
        if matches!(state, State::Stopping { told: false, .. }) {
            // It may have been told all the same.
            process.stop_sent = None;
        }
        if process.alive {
            return Found::Alive { pid: process.pid };
        }
        if matches!(state, State::Spawning { .. }) && !process.left && self.random.bool() {
            // It was so short that nothing of it is left.
            self.processes.remove(id);
            return Found::NeverStarted;
        }
        let known = process.exit.filter(|_| self.random.bool());
        Found::Gone {
            exit: known.unwrap_or(Exit::Unknown),
            descendants: process.left,
        }
    }

    /// A worker that serves continues as the same process: no worker pays for the daemon's death.
    fn nothing_lost(&self, name: &AppName, was: &App, found: &BTreeMap<WorkerId, Found>) {
        let Some(app) = self.core.apps.get(name) else {
            return;
        };
        let stays = |w: &Worker| {
            was.wanted == Wanted::Up && was.rollout.is_none() && was.is_current(w) && w.ready()
        };
        for worker in was.workers().filter(|w| stays(w)) {
            if let Found::Alive { pid } = found[&worker.id] {
                let now = self
                    .core
                    .worker(&worker.id)
                    .unwrap_or_else(|| panic!("{} was lost: {app:#?}", worker.id));
                assert!(
                    now.ready() && now.stays() && now.pid == Some(pid),
                    "{was:#?} {app:#?}"
                );
            }
        }
        let ended = |w: &Worker| {
            matches!(found[&w.id], Found::Gone { .. }) && !matches!(w.state, State::Sweeping { .. })
        };
        let queued = !was.queue.is_empty();
        if !was.workers().any(ended) && !queued {
            assert_eq!(app.current, was.current);
            for (revision, was) in &was.sets {
                let now = app
                    .sets
                    .get(revision)
                    .into_iter()
                    .flat_map(|set| &set.instances);
                for (number, now) in now {
                    if let Some(was) = was.instances.get(number) {
                        assert_eq!((now.restarts, &now.state), (was.restarts, &was.state));
                    }
                }
            }
            let back = |app: &App| {
                app.rollout
                    .as_ref()
                    .is_some_and(|o| matches!(o.phase, Phase::RollBack { .. }))
            };
            assert!(back(was) || !back(app), "a reload turned back: {app:#?}");
        }
    }

    /// The machine is started anew.
    pub fn reboot(&mut self) {
        let written = put_down(&self.core);
        self.begin_again(&written);
        self.gone.extend(self.processes.keys().cloned());
        self.processes.clear();
        self.listening.clear();
        self.tables.clear();
        self.relays.clear();
        self.refusing.clear();
        self.coming.clear();
        self.asked.clear();
        self.before.clear();
        self.now = Time(ms(self.random.u64(..30_000)));
        self.reviving = true;
        self.core.reboot(self.now, false);
        let effects = self.effects();
        for effect in &effects {
            self.carry_out(effect);
        }
        checks::step(self, &Input::Tick, &effects);
        self.reviving = false;
    }

    /// Every app that was up is up again, from the revision that it had for certain, and no other.
    pub fn reboots(&mut self) {
        let wanted = |app: &App| {
            let before = app
                .rollout
                .as_ref()
                .filter(|o| o.is_trial())
                .and_then(|o| o.from);
            let (number, instances) =
                before.map_or((app.current, app.instances), |b| (b.revision, b.instances));
            (app.wanted, number, instances)
        };
        let was: BTreeMap<AppName, (Wanted, u64, u16)> = self
            .core
            .apps
            .iter()
            .map(|(name, app)| (name.clone(), wanted(app)))
            .collect();
        self.reboot();
        self.run(ms(30_000));
        for (name, (wanted, number, instances)) in was {
            if wanted == Wanted::Deleted {
                assert!(!self.core.apps.contains_key(&name));
                continue;
            }
            checks::quiet(self, &name);
            let app = self.app(&name);
            assert_eq!(
                (app.wanted, app.current, app.instances),
                (wanted, number, instances)
            );
            if wanted == Wanted::Up {
                assert_eq!(
                    app.workers()
                        .filter(|w| checks::serves(w) && w.revision == number)
                        .count(),
                    usize::from(instances)
                );
                assert!(
                    app.sets
                        .values()
                        .flat_map(|set| set.instances.values())
                        .all(|i| i.state == RestartState::Open && i.restarts == 0)
                );
            }
        }
    }
}

/// Nothing is started before its sockets are asked for, looked after, and the traffic is steered. What follows from
/// the fates of the workers may steer it anew.
fn in_order(effects: &[Effect]) {
    let (mut started, mut steered) = (BTreeSet::new(), BTreeSet::new());
    for effect in effects {
        match effect {
            Effect::Spawn { worker, .. } => {
                started.insert(worker.app.clone());
            }
            Effect::Steer { app, .. } => {
                let first = steered.insert(app.clone());
                assert!(!first || !started.contains(app), "{effects:#?}");
            }
            Effect::Listen { .. }
            | Effect::Unlisten { .. }
            | Effect::Refuse { .. }
            | Effect::Relay { .. }
            | Effect::Probe { .. }
            | Effect::LookForTraces { .. }
            | Effect::Drain { .. }
            | Effect::Signal { .. }
            | Effect::Forget { .. }
            | Effect::KeepOn { .. }
            | Effect::Progress(_)
            | Effect::Finished { .. }
            | Effect::Record(_)
            | Effect::Removed { .. } => {}
        }
    }
}

/// Plays a story once for every input at which the daemon may be killed, and for some chances each.
fn at_every_step(story: impl Fn(&mut World)) {
    for seed in 0..2 {
        for after in 0.. {
            let mut world = World::new(seed);
            world.death = Death::After(after);
            story(&mut world);
            if matches!(world.death, Death::After(_)) {
                assert!(after > 10, "{after}");
                break;
            }
        }
    }
}

fn restarts(world: &World, name: &AppName) -> u32 {
    let sets = world.app(name).sets.values();
    sets.flat_map(|set| set.instances.values())
        .map(|i| i.restarts)
        .sum()
}

fn revisions(world: &World, name: &AppName) -> Vec<u64> {
    world
        .core
        .workers(name)
        .filter(|w| checks::serves(w))
        .map(|w| w.revision)
        .collect()
}

/// `web` runs with three workers.
fn started(world: &mut World) -> Vec<WorkerId> {
    let name = AppName::new("web");
    world.ask(&name, start(&web(3)));
    world.run(ms(30_000));
    world.ready(&name)
}

/// `web` is started and asked for this, which takes less than a minute.
fn asked_for(world: &mut World, request: Request) -> AppName {
    started(world);
    go_on(world, request)
}

fn go_on(world: &mut World, request: Request) -> AppName {
    let name = AppName::new("web");
    world.ask(&name, request);
    world.run(ms(60_000));
    checks::quiet(world, &name);
    name
}

#[test]
fn killed_at_any_step_of_a_reload_it_is_done_all_the_same() {
    at_every_step(|world| {
        let name = asked_for(world, reload(&web(3)));
        assert_eq!(revisions(world, &name), [2, 2, 2]);
        assert!(restarts(world, &name) == 0);
    });
}

#[test]
fn killed_at_any_step_of_a_bad_reload_the_old_workers_stay() {
    at_every_step(|world| {
        world.script = Box::new(|_, _, revision| {
            if revision.number == 2 {
                Behaviour::never_ready()
            } else {
                Behaviour::good()
            }
        });
        let old = started(world);
        let name = go_on(world, reload(&web(3)));
        assert_eq!(world.ready(&name), old);
        assert_eq!(revisions(world, &name), [1, 1, 1]);
        assert!(restarts(world, &name) == 0);
    });
}

#[test]
fn killed_at_any_step_of_other_actions_they_are_done() {
    for request in [
        Request::Restart {
            spec: Box::new(web(2)),
            base_env: None,
        },
        Request::Scale { instances: 2 },
    ] {
        at_every_step(|world| {
            let name = asked_for(world, request.clone());
            assert_eq!(world.ready(&name).len(), 2);
        });
    }
    at_every_step(|world| {
        let name = asked_for(world, Request::Stop);
        assert!(world.core.workers(&name).next().is_none());
    });
    at_every_step(|world| {
        let name = asked_for(world, Request::Delete);
        assert!(world.core.names().next().is_none(), "{name}");
    });
}

#[test]
fn a_worker_whose_deadline_passed_unseen_gets_a_little_longer() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.ask(&name, start(&web(1)));
    world.run(ms(100));
    let id = world.core.workers(&name).next().unwrap().id.clone();
    world.processes.get_mut(&id).unwrap().behaviour.ready_after = Some(ms(60_000));
    let written = put_down(&world.core);
    world.coming.clear();
    world.now = world.now + ms(59_000);
    world.core = read_back(&written);
    world.come_back();
    world.run(ms(2000));
    assert_eq!(world.ready(&name), [id]);
}

#[test]
fn a_stopping_worker_is_not_told_again_but_one_that_may_not_have_been_is() {
    for told in [false, true] {
        let mut world = World::new(1);
        let name = AppName::new("web");
        world.done(&name, start(&web(1))).unwrap();
        let id = world.ready(&name)[0].clone();
        world.processes.get_mut(&id).unwrap().behaviour.stops_after = Some(ms(1500));
        world.core.handle(
            world.now,
            Input::Request {
                op: OpId(9),
                app: name.clone(),
                request: Request::Stop,
                cause: Cause::Command,
            },
        );
        world.effects();
        world
            .core
            .handle(world.now, Input::Drained { worker: id.clone() });
        if told {
            world.effects();
        }
        let written = put_down(&world.core);
        let mut read = read_back(&written);
        read.revive(
            world.now,
            &BTreeMap::from([(id.clone(), Found::Alive { pid: 1 })]),
        );
        let signals = std::iter::from_fn(|| read.poll_effect())
            .filter(|e| matches!(e, Effect::Signal { .. }))
            .count();
        assert_eq!(signals, usize::from(!told));
    }
}

/// Both after any death in the midst of a stop of everything: with a stop that no request asked for, and as
/// one that outlives it.
#[test]
fn a_halt_that_was_cut_short_is_none_for_the_next_start() {
    for down in [false, true] {
        for step in 0..40 {
            let mut world = World::new(step);
            let name = AppName::new("web");
            world.done(&name, start(&web(3))).unwrap();
            for process in world.processes.values_mut() {
                process.behaviour.stops_after = Some(ms(300));
            }
            world.ask(&name, Request::Halt);
            world.run(ms(20 * step));
            let whole_machine = step % 2 == 0;
            if whole_machine {
                world
                    .processes
                    .values_mut()
                    .filter(|p| p.alive)
                    .for_each(|p| p.ended(Exit::Unknown, false));
                world.coming.clear();
            }
            let written = put_down(&world.core);
            world.between();
            world.core = read_back(&written);
            world.core.halt_is_over(down);
            world.come_back();
            world.run(ms(60_000));
            checks::quiet(&world, &name);
            assert_eq!(
                world.app(&name).wanted,
                if down { Wanted::Down } else { Wanted::Up }
            );
            assert_eq!(world.ready(&name).len(), if down { 0 } else { 3 });
            assert!(
                restarts(&world, &name) == 0,
                "no worker is blamed: {:#?}",
                world.app(&name)
            );
            if down {
                world.done(&name, start(&web(2))).unwrap();
                assert_eq!(world.ready(&name).len(), 2);
            }
        }
    }
}

#[test]
fn a_halt_stops_what_is_wanted_and_a_reboot_starts_it() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.done(&name, start(&web(2))).unwrap();
    world.done(&name, Request::Halt).unwrap();
    assert!(world.core.idle() && world.processes.is_empty());
    assert_eq!(world.view(&name).phase, AppPhase::Stopped);
    assert_eq!(world.core.completion_of(&name), None);
    world.reboot();
    world.run(ms(10_000));
    assert_eq!(world.ready(&name).len(), 2);
}

#[test]
fn the_reason_of_a_crash_ends_when_its_instance_serves_again() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.done(&name, start(&web(2))).unwrap();
    let id = world.ready(&name)[0].clone();
    world.crash(&id);
    assert!(
        world
            .view(&name)
            .reason
            .is_some_and(|reason| reason.starts_with("0: "))
    );
    world.run(ms(10_000));
    assert_eq!(world.ready(&name).len(), 2);
    assert_eq!(world.view(&name).reason, None);
}

#[test]
fn after_a_reboot_an_address_that_cannot_be_had_yet_is_waited_for() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.done(&name, start(&web(2))).unwrap();
    world.refuses = Box::new(|_, _, _| true);
    world.reboot();
    world.run(ms(20_000));
    assert_eq!(world.app(&name).wanted, Wanted::Up);
    assert!(world.view(&name).reason.is_some());
    world.refuses = Box::new(|_, _, _| false);
    world.run(ms(10_000));
    assert_eq!(world.ready(&name).len(), 2);
    assert_eq!(world.view(&name).reason, None, "it explained what is over");
}

#[test]
fn a_reboot_in_the_middle_of_a_reload_leads_to_the_revision_before_it() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.done(&name, start(&web(3))).unwrap();
    world.ask(&name, reload(&web(2)));
    world.run(ms(350));
    world.reboots();
    assert_eq!(revisions(&world, &name), [1, 1, 1]);
}
