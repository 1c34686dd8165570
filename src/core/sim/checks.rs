//! What must hold after every step, whatever happens.

use std::collections::BTreeMap;

use super::super::reason::Explains;
use super::super::restart::RestartState;
use super::super::set::Set;
use super::super::worker::{Next, State};
use super::*;

/// An app before a step.
pub struct Before {
    serving: Vec<WorkerId>,
    most: u16,
}

/// What the checks after the next step compare with.
pub fn before(core: &Supervisor) -> BTreeMap<AppName, Before> {
    let of = |app: &App| {
        let serving = app.workers().filter(|w| serves(w));
        Before {
            serving: serving.map(|w| w.id.clone()).collect(),
            most: most(app),
        }
    };
    let apps = core.apps.iter();
    apps.map(|(name, app)| (name.clone(), of(app))).collect()
}

pub fn step(world: &World, input: &Input, effects: &[Effect]) {
    assert_eq!(
        world.core.agenda,
        Agenda::of(&world.core.apps, world.core.ticked),
        "the agenda is not that of the apps after {input:?}"
    );
    for (name, app) in world.core.apps.iter() {
        steering(world, name, app);
        if let Some(before) = world.before.get(name) {
            nobody_missed(&before.serving, app, input, world.now);
        }
        processes(world, name, app);
    }
    for effect in effects {
        if let Effect::Finished {
            op,
            result: Err(error),
        } = effect
        {
            after_failure(world, *op, error);
        }
    }
}

/// Only ready workers take traffic, only at their own addresses, and every ready one does.
fn steering(world: &World, name: &AppName, app: &App) {
    if app.listening.held.is_none() || app.listening.pending.is_some() {
        return;
    }
    for table in world.tables.get(name).into_iter().flatten() {
        for (slot, worker) in app.slots.iter().enumerate() {
            let weight = table.weights[slot];
            let state = worker
                .as_ref()
                .filter(|w| app.spec_of(w).listen.contains(&table.address))
                .map(|w| &w.state);
            match state {
                Some(State::Ready { unready: false, .. }) => {
                    assert!(
                        weight > 0,
                        "slot {slot} is ready and takes no traffic: {app:#?}"
                    )
                }
                Some(State::Ready { unready: true, .. }) => {}
                _ => assert_eq!(
                    weight, 0,
                    "slot {slot} takes traffic and is not ready: {app:#?}"
                ),
            }
        }
    }
}

pub fn serves(worker: &Worker) -> bool {
    matches!(worker.state, State::Ready { unready: false, .. })
}

/// No action but a stop or a restart takes a serving worker away without one to take its place.
fn nobody_missed(served: &[WorkerId], app: &App, input: &Input, now: Time) {
    let restart = app
        .rollout
        .as_ref()
        .is_some_and(|o| o.kind == OperationKind::Restart);
    // A reload that waited has begun in the same step in which something else ended: two steps in one.
    let two = app.rollout.as_ref().is_some_and(|o| o.since == now)
        && !matches!(input, Input::Request { .. });
    if app.goal() != Wanted::Up || restart || two {
        return;
    }
    let leaves = |w: &Worker| {
        matches!(
            w.state,
            State::Draining { .. } | State::Stopping { .. } | State::Killing { .. }
        )
    };
    let taken = app.workers().find(|w| served.contains(&w.id) && leaves(w));
    let Some(taken) = taken else { return };
    let left = app.workers().filter(|w| serves(w)).count();
    let ended = app
        .sets
        .values()
        .flat_map(|set| set.instances.values())
        .filter(|i| matches!(i.state, RestartState::Exited | RestartState::Errored))
        .count();
    assert!(
        left + ended >= usize::from(app.instances),
        "{} was taken away by {input:?} and left {left} of {}: {app:#?}",
        taken.id,
        app.instances,
    );
}

/// The core's picture of the processes is right, and each worker it waits for is sure to end.
fn processes(world: &World, name: &AppName, app: &App) {
    for worker in app.workers() {
        let process = world
            .processes
            .get(&worker.id)
            .unwrap_or_else(|| panic!("{} is made up", worker.id));
        let sweeping = matches!(worker.state, State::Sweeping { .. });
        assert!(!(process.alive && sweeping), "{} lives", worker.id);
        if let State::Starting {
            readiness: clock, ..
        } = &worker.state
            && clock.next == Next::Never
        {
            assert_eq!(app.spec_of(worker).readiness.check, Check::Notify);
        }
    }
    let known = world.processes.keys().filter(|id| id.app == *name).count();
    assert_eq!(known, app.workers().count(), "forgotten processes");
}

/// A failed reload has changed nothing.
fn after_failure(world: &World, op: OpId, error: &ActionError) {
    let wish = &world.asked[&op];
    let (Some(from), Some(app)) = (wish.reload_from, world.core.apps.get(&wish.app)) else {
        return;
    };
    // Unless the next one that waited has begun.
    if error.code() != FailureCode::Superseded && app.rollout.is_none() {
        assert_eq!(
            app.current, from,
            "a failed reload left its revision: {app:#?}"
        );
        let whole = app.sets.get(&from).is_some_and(|set| {
            let others = app.sets.iter().filter(|(n, _)| **n != from);
            set.replicas + others.map(|(_, set)| set.replicas).sum::<u16>() == app.instances
        });
        let whole = whole || app.goal() != Wanted::Up;
        assert!(whole, "a failed reload still takes workers: {app:#?}");
    }
}

pub fn spawn(world: &World, worker: &WorkerId) {
    let app = &world.core.apps[&worker.app];
    assert!(
        !world
            .processes
            .keys()
            .any(|id| id.app == worker.app && id.slot == worker.slot),
        "{worker}: its slot is taken"
    );
    assert!(
        world
            .processes
            .keys()
            .chain(world.gone.last())
            .all(|id| id.generation < worker.generation),
        "{worker} was there before"
    );
    for table in world.tables.get(&worker.app).into_iter().flatten() {
        assert_eq!(
            table.weights[usize::from(worker.slot)],
            0,
            "{worker} is started in the traffic"
        );
    }
    assert_eq!(
        world.relays.get(&(worker.app.clone(), worker.slot)),
        Some(&false),
        "{worker} competes with the relay"
    );
    let held = &world.listening[&worker.app];
    let spec = app.spec_of(app.slots[usize::from(worker.slot)].as_ref().unwrap());
    assert!(
        spec.listen.iter().all(|l| held.contains(l)),
        "{worker} has no socket"
    );
    // One that is started in the step that ends a rollout was within that one's bounds.
    let before = world.before.get(&worker.app).map(|before| before.most);
    let most = most(app).max(before.unwrap_or_default());
    let live = 1 + world
        .processes
        .keys()
        .filter(|id| id.app == worker.app)
        .count();
    assert!(
        live <= usize::from(most),
        "{live} workers of {most}: {app:#?}"
    );
}

/// How many workers an app may have at once.
fn most(app: &App) -> u16 {
    let mut most = app.instances;
    let mut surge = app.spec().surge(most);
    if let Some(before) = app.rollout.as_ref().and_then(|o| o.from) {
        most = most.max(before.instances);
        surge = surge.max(app.releases[before.revision].spec.surge(most));
    }
    most + surge
}

pub fn signal(world: &mut World, worker: &WorkerId, signal: i32, reach: Reach) {
    let (now, forced) = (world.now, world.forced);
    let process = world
        .processes
        .get_mut(worker)
        .unwrap_or_else(|| panic!("{worker} is signalled after its end"));
    let kill_timeout = process.revision.spec.kill_timeout;
    match (signal, reach) {
        (SIGKILL, Reach::Tree) => {
            let due = process.stop_sent.is_some_and(|at| at + kill_timeout <= now);
            assert!(
                due || forced || !process.alive,
                "{worker} is killed too early"
            );
        }
        (_, Reach::Tree) => assert!(!process.alive, "a stop signal goes to the worker alone"),
        (_, Reach::Worker) => {
            assert!(
                process.stop_sent.replace(now).is_none(),
                "{worker} is told to stop twice"
            );
            let slot = (worker.app.clone(), worker.slot);
            assert_eq!(
                world.relays.get(&slot),
                Some(&true),
                "{worker} is stopped and no worker accepts in its place"
            );
            let weighs = world
                .tables
                .get(&worker.app)
                .into_iter()
                .flatten()
                .any(|t| t.weights[usize::from(worker.slot)] > 0);
            assert!(!weighs, "{worker} is stopped in the traffic");
            let app = world.core.apps.get(&worker.app);
            let held = world.listening.get(&worker.app);
            if app.is_some_and(|app| app.goal() != Wanted::Up) && held.is_some() {
                assert!(
                    world.refusing.contains(&worker.app),
                    "clients wait for {worker}, which is stopped for good"
                );
            }
        }
    }
}

/// Once no more faults happen and time has passed, everything is as wanted.
pub fn quiet(world: &World, name: &AppName) {
    for (op, wish) in &world.asked {
        assert!(
            world.finished.contains_key(op),
            "{op:?} was never answered: {:#?}",
            world.core.apps.get(&wish.app)
        );
    }
    let Some(app) = world.core.apps.get(name) else {
        assert!(world.processes.is_empty() && world.listening.is_empty());
        return;
    };
    assert!(app.rollout.is_none() && app.queue.is_empty());
    match app.goal() {
        Wanted::Up => {
            let healthy = app
                .workers()
                .filter(|w| app.is_current(w) && serves(w))
                .count()
                >= usize::from(app.instances);
            if let Some(reason) = app.reason.as_ref().filter(|_| healthy) {
                assert_eq!(
                    reason.explains(),
                    Explains::Action,
                    "a reason outlives what it explains: {app:#?}"
                );
            }
            let total: u16 = app.sets.values().map(|set| set.replicas).sum();
            assert_eq!(total, app.instances, "{app:#?}");
            // What is left of another release serves in place of an instance that is not started again.
            let left = app.workers().filter(|w| {
                let set = app.sets.get(&w.revision);
                set.is_none_or(|set| set.replicas == 0)
            });
            let left: Vec<&Worker> = left.collect();
            let over = |set: &Set| {
                let mut instances = set.instances.values();
                instances.any(|i| matches!(i.state, RestartState::Errored | RestartState::Exited))
            };
            assert!(left.iter().all(|w| !w.stays()), "{app:#?}");
            assert!(left.is_empty() || app.sets.values().any(over), "{app:#?}");
            assert!(
                app.workers().count() <= usize::from(app.instances),
                "{app:#?}"
            );
            for (revision, set) in app.sets.iter().filter(|(_, set)| set.replicas > 0) {
                for (instance, policy) in &set.instances {
                    let of = |w: &&Worker| w.instance == *instance && w.revision == *revision;
                    let live: Vec<&Worker> = app.workers().filter(of).collect();
                    match policy.state {
                        RestartState::Open => assert!(
                            live.len() == 1 && live[0].stays() && serves(live[0]),
                            "instance {instance}: {app:#?}"
                        ),
                        // Two faulty ones of an instance may stay where no other one comes: one of them serves
                        // in place of another instance that was given up.
                        RestartState::Errored | RestartState::Exited => {
                            let in_place = live.iter().all(|w| !w.stays())
                                && app.workers().count() <= usize::from(app.instances);
                            assert!(live.len() <= 1 || in_place, "instance {instance}: {app:#?}");
                        }
                        RestartState::Backoff { .. } => {
                            panic!("instance {instance} still waits: {app:#?}")
                        }
                    }
                }
            }
        }
        Wanted::Down => assert!(
            world.processes.is_empty() && world.listening.is_empty(),
            "{app:#?}"
        ),
        Wanted::Deleted => panic!("{name} is not gone"),
    }
}
