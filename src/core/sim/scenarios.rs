//! Named stories.

use super::super::restart::RestartState;
use super::*;

/// `web` with so many instances, started and ready.
fn running(instances: u16) -> (World, AppName) {
    running_as(&web(instances))
}

fn running_as(spec: &AppSpec) -> (World, AppName) {
    let mut world = World::new(1);
    let name = spec.name.clone();
    world.done(&name, start(spec)).unwrap();
    assert_eq!(world.ready(&name).len(), usize::from(spec.instances));
    (world, name)
}

/// From now on, workers of later revisions than the first behave so.
fn later_revisions(world: &mut World, behaviour: Behaviour) {
    world.script = Box::new(move |_, _, revision| {
        if revision.number > 1 {
            behaviour.clone()
        } else {
            Behaviour::good()
        }
    });
}

#[test]
fn a_reload_replaces_every_worker_and_answers_once_the_old_ones_are_gone() {
    let (mut world, name) = running(3);
    let old = world.ready(&name);
    world.done(&name, reload(&web(3))).unwrap();
    let new = world.ready(&name);
    assert_eq!(new.len(), 3);
    assert!(old.iter().all(|id| world.gone.contains(id)));
    assert_eq!(world.steered(&name).len(), 3);
}

#[test]
fn a_reload_that_never_gets_ready_leaves_the_old_workers_serving() {
    let (mut world, name) = running(3);
    let old = world.ready(&name);
    later_revisions(&mut world, Behaviour::never_ready());
    let error = world.done(&name, reload(&web(3))).unwrap_err();
    assert_eq!(error.code(), FailureCode::NotReady);
    assert!(
        error.message(&name).contains("listen_timeout"),
        "{}",
        error.message(&name)
    );
    world.run(ms(60_000));
    assert_eq!(world.ready(&name), old);
    assert_eq!(world.core.revision(&name).unwrap().number, 1);
}

#[test]
fn when_a_later_worker_of_a_reload_fails_the_replaced_ones_go_back() {
    let (mut world, name) = running(3);
    world.script = Box::new(|_, instance, revision| {
        if revision.number == 2 && instance == 2 {
            Behaviour::crashing()
        } else {
            Behaviour::good()
        }
    });
    let error = world.done(&name, reload(&web(3))).unwrap_err();
    assert!(
        error.message(&name).contains("exited with code 1"),
        "{}",
        error.message(&name)
    );
    assert!(world.core.workers(&name).all(|w| w.revision == 1));
    assert_eq!(world.ready(&name).len(), 3);
}

#[test]
fn without_auto_rollback_the_replaced_workers_stay() {
    let mut spec = web(3);
    spec.reload.auto_rollback = false;
    let (mut world, name) = running(3);
    world.script = Box::new(|_, instance, revision| {
        if revision.number == 2 && instance == 2 {
            Behaviour::crashing()
        } else {
            Behaviour::good()
        }
    });
    world.done(&name, reload(&spec)).unwrap_err();
    world.run(ms(10_000));
    let mut revisions: Vec<u64> = world.core.workers(&name).map(|w| w.revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 2, 2]);
}

#[test]
fn an_old_worker_that_crashes_while_a_bad_revision_is_tried_comes_back_from_its_own() {
    let (mut world, name) = running(1);
    world.run(ms(5000));
    later_revisions(&mut world, Behaviour::never_ready());
    let op = world.ask(&name, reload(&web(1)));
    world.run(ms(100));
    let old = world.ready(&name)[0].clone();
    world.crash(&old);
    world.run(ms(1000));
    assert!(!world.finished.contains_key(&op));
    assert_eq!(
        world.steered(&name).len(),
        1,
        "it serves again before the reload has ended"
    );
    world.answer(op).unwrap_err();
    assert!(
        world
            .core
            .workers(&name)
            .filter(|w| w.ready())
            .all(|w| w.revision == 1)
    );
}

#[test]
fn a_fault_of_its_own_outlasts_a_failed_reload() {
    let mut spec = web(1);
    spec.max_memory = Some(100);
    let (mut world, name) = running_as(&spec);
    later_revisions(&mut world, Behaviour::never_ready());
    let old = world.ready(&name)[0].clone();
    let op = world.ask(&name, reload(&spec));
    for _ in 0..2 {
        world.handle(Input::Memory {
            worker: old.clone(),
            bytes: 1000,
        });
    }
    world.answer(op).unwrap_err();
    assert_eq!(world.ready(&name), std::slice::from_ref(&old));
    world.run(ms(10_000));
    assert!(world.gone.contains(&old), "the leaking worker is replaced");
    assert_eq!(world.ready(&name).len(), 1);
}

#[test]
fn a_leaking_worker_goes_only_after_its_replacement_is_ready() {
    let mut spec = web(1);
    spec.max_memory = Some(100);
    let (mut world, name) = running_as(&spec);
    let old = world.ready(&name)[0].clone();
    world.script = Box::new(|_, _, _| Behaviour::crashing());
    for _ in 0..2 {
        world.handle(Input::Memory {
            worker: old.clone(),
            bytes: 1000,
        });
    }
    world.run(ms(60_000));
    assert_eq!(
        world.ready(&name),
        [old],
        "its replacements fail, so it stays"
    );
    assert_eq!(
        world.app(&name).sets[&1].instances[&0].state,
        RestartState::Errored
    );
}

#[test]
fn a_first_start_without_its_port_leaves_no_app() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.refuses = Box::new(|_, _, _| true);
    let error = world.done(&name, start(&web(2))).unwrap_err();
    assert_eq!(
        (error.code(), error.message(&name).as_str()),
        (FailureCode::Listen, "port 80 is taken")
    );
    assert_eq!(world.removed, [name]);
    assert!(world.core.apps.is_empty() && world.spawned == 0);
}

#[test]
fn a_stopped_app_outlives_a_resume_without_its_port() {
    let (mut world, name) = running(2);
    world.done(&name, Request::Stop).unwrap();
    world.refuses = Box::new(|_, _, _| true);
    assert_eq!(
        world.done(&name, Request::StartStopped).unwrap_err().code(),
        FailureCode::Listen
    );
    assert_eq!(world.view(&name).phase, AppPhase::Stopped);
    world.refuses = Box::new(|_, _, _| false);
    world.done(&name, Request::StartStopped).unwrap();
    assert_eq!(world.ready(&name).len(), 2);
}

#[test]
fn a_first_start_that_crashes_goes_on_being_tried() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.script = Box::new(|_, _, _| Behaviour::crashing());
    let error = world.done(&name, start(&web(1))).unwrap_err();
    let hint = error.hint(&name, OperationKind::Start).unwrap();
    assert!(
        hint.contains("keeps trying") && hint.contains("rsup delete web"),
        "{hint}"
    );
    world.script = Box::new(|_, _, _| Behaviour::good());
    world.run(ms(5000));
    assert_eq!(world.ready(&name).len(), 1);
}

#[test]
fn a_worker_that_always_crashes_is_given_up_alone() {
    let (mut world, name) = running(3);
    world.script = Box::new(|_, instance, _| {
        if instance == 1 {
            Behaviour::crashing()
        } else {
            Behaviour::good()
        }
    });
    let others: Vec<WorkerId> = world
        .core
        .workers(&name)
        .filter(|w| w.instance != 1)
        .map(|w| w.id.clone())
        .collect();
    let one = world
        .core
        .workers(&name)
        .find(|w| w.instance == 1)
        .unwrap()
        .id
        .clone();
    world.crash(&one);
    world.run(ms(60_000));
    assert_eq!(world.ready(&name), others);
    let view = world.view(&name);
    let errored = view.workers.iter().find(|w| w.instance == 1).unwrap();
    assert_eq!((errored.phase, errored.restarts), (WorkerPhase::Errored, 3));
    assert!(
        errored
            .reason
            .as_ref()
            .unwrap()
            .contains("given up after 3 restarts")
    );
    world.script = Box::new(|_, _, _| Behaviour::good());
    world.done(&name, reload(&web(3))).unwrap();
    assert_eq!(world.ready(&name).len(), 3);
}

#[test]
fn a_reload_to_a_port_that_is_taken_changes_nothing() {
    let (mut world, name) = running(2);
    let old = world.ready(&name);
    world.refuses = Box::new(|_, addresses, _| addresses.contains(&port(81)));
    let mut spec = web(4);
    spec.listen = vec![port(81)];
    assert_eq!(
        world.done(&name, reload(&spec)).unwrap_err().code(),
        FailureCode::Listen
    );
    world.run(ms(60_000));
    assert_eq!((world.ready(&name), world.spawned), (old, 2));
}

#[test]
fn a_reload_to_another_port_holds_both_until_the_old_workers_are_gone() {
    let (mut world, name) = running(2);
    let mut spec = web(2);
    spec.listen = vec![port(81)];
    let op = world.ask(&name, reload(&spec));
    world.run(ms(50));
    assert_eq!(world.listening[&name], [port(80), port(81)]);
    world.answer(op).unwrap();
    world.run(ms(50));
    assert_eq!(world.listening[&name], [port(81)]);
}

#[test]
fn a_reload_grows_and_shrinks() {
    let (mut world, name) = running(2);
    world.done(&name, reload(&web(5))).unwrap();
    assert_eq!(world.steered(&name).len(), 5);
    world.done(&name, reload(&web(1))).unwrap();
    assert_eq!((world.steered(&name).len(), world.processes.len()), (1, 1));
}

#[test]
fn scaling_keeps_the_workers_that_are_wanted_and_outlives_a_stop() {
    let (mut world, name) = running(2);
    let old = world.ready(&name);
    world.done(&name, Request::Scale { instances: 4 }).unwrap();
    assert!(old.iter().all(|id| world.ready(&name).contains(id)));
    world.done(&name, Request::Stop).unwrap();
    world.done(&name, Request::StartStopped).unwrap();
    assert_eq!(world.ready(&name).len(), 4);
    world.done(&name, Request::Scale { instances: 1 }).unwrap();
    assert_eq!(world.processes.len(), 1);
}

#[test]
fn a_stop_ends_a_reload_and_the_old_revision_is_what_resumes() {
    let (mut world, name) = running(2);
    later_revisions(&mut world, Behaviour::never_ready());
    let op = world.ask(&name, reload(&web(2)));
    let queued = world.ask(
        &name,
        Request::Reload {
            spec: Box::new(web(3)),
            base_env: None,
            queue: true,
        },
    );
    world.run(ms(500));
    world.done(&name, Request::Stop).unwrap();
    for op in [op, queued] {
        assert_eq!(
            world.finished[&op].as_ref().unwrap_err().code(),
            FailureCode::Superseded
        );
    }
    world.done(&name, Request::StartStopped).unwrap();
    assert!(world.core.workers(&name).all(|w| w.revision == 1));
}

#[test]
fn a_restart_stops_first() {
    let (mut world, name) = running(2);
    let op = world.ask(
        &name,
        Request::Restart {
            spec: Box::new(web(2)),
            base_env: None,
        },
    );
    assert!(world.steered(&name).is_empty());
    assert!(world.core.workers(&name).all(|w| !w.active()));
    world.answer(op).unwrap();
    assert!(world.core.workers(&name).all(|w| w.revision == 2));
}

#[test]
fn a_stop_drains_first_and_kills_what_does_not_end() {
    let (mut world, name) = running(1);
    let id = world.ready(&name)[0].clone();
    world.processes.get_mut(&id).unwrap().behaviour.stops_after = None;
    let op = world.ask(&name, Request::Stop);
    assert_eq!(
        world.core.worker(&id).unwrap().phase(),
        WorkerPhase::Draining
    );
    world.answer(op).unwrap();
    assert!(world.listening.is_empty());
}

#[test]
fn a_forced_stop_kills_at_once() {
    let (mut world, name) = running(2);
    for process in world.processes.values_mut() {
        process.behaviour.drains_after = None;
        process.behaviour.stops_after = None;
    }
    let op = world.ask(&name, Request::Stop);
    world.handle(Input::ForceStop);
    world.run(ms(100));
    assert!(world.finished[&op].is_ok());
}

#[test]
fn a_deleted_name_can_be_used_again() {
    let (mut world, name) = running(2);
    let op = world.ask(&name, Request::Delete);
    world.answer(op).unwrap();
    assert_eq!(world.removed, std::slice::from_ref(&name));
    world.done(&name, start(&web(1))).unwrap();
    assert_eq!(world.ready(&name).len(), 1);
}

#[test]
fn unready_workers_are_replaced_before_serving_ones() {
    let (mut world, name) = running(3);
    let ids = world.ready(&name);
    world
        .processes
        .get_mut(&ids[2])
        .unwrap()
        .behaviour
        .unready_after = Some(ms(0));
    world.run(ms(15_000));
    assert_eq!(world.steered(&name).len(), 2);
    let op = world.ask(&name, reload(&web(3)));
    while world.core.workers(&name).all(Worker::active) {
        world.run(ms(10));
    }
    assert_eq!(
        world.core.workers(&name).find(|w| !w.active()).unwrap().id,
        ids[2]
    );
    world.answer(op).unwrap();
}

#[test]
fn if_every_worker_is_unready_all_of_them_take_traffic() {
    let (mut world, name) = running(2);
    for process in world.processes.values_mut() {
        process.behaviour.unready_after = Some(ms(0));
    }
    world.run(ms(30_000));
    assert!(
        world
            .core
            .workers(&name)
            .all(|w| w.phase() == WorkerPhase::Unready)
    );
    assert_eq!(world.steered(&name).len(), 2);
}

#[test]
fn descendants_keep_the_slot_until_they_are_gone() {
    let (mut world, name) = running(1);
    let id = world.ready(&name)[0].clone();
    world.processes.get_mut(&id).unwrap().behaviour.stops_after = None;
    world.processes.get_mut(&id).unwrap().alive = false;
    world.handle(Input::Exited {
        worker: id.clone(),
        exit: Exit::Code(1),
        descendants: true,
    });
    assert_eq!(
        world.core.worker(&id).unwrap().phase(),
        WorkerPhase::Stopping
    );
    world.run(ms(1500));
    assert_eq!(world.ready(&name).len(), 1, "another slot serves meanwhile");
    world.run(ms(1500));
    assert!(world.gone.contains(&id));
}

#[test]
fn a_queued_reload_follows_the_one_under_way() {
    let (mut world, name) = running(2);
    let first = world.ask(&name, reload(&web(2)));
    let refused = world.done(&name, reload(&web(2))).unwrap_err();
    assert_eq!(refused.code(), FailureCode::Busy);
    let second = world.ask(
        &name,
        Request::Reload {
            spec: Box::new(web(2)),
            base_env: None,
            queue: true,
        },
    );
    world.answer(first).unwrap();
    world.answer(second).unwrap();
    assert!(world.core.workers(&name).all(|w| w.revision == 3));
}

/// The first worker of the second revision ends so long after its start; the rest is good.
fn dies_after(world: &mut World, after: Duration) {
    world.script = Box::new(move |_, _, revision| Behaviour {
        ends_after: (revision.number == 2).then_some((after, 1)),
        ..Behaviour::good()
    });
}

#[test]
fn a_release_that_dies_soon_after_it_is_ready_fails_and_every_old_worker_stays() {
    for after in [301, 320, 600, 1200] {
        for instances in [1, 2, 3] {
            let mut spec = web(instances);
            spec.reload.min_ready = ms(1000);
            let (mut world, name) = running_as(&spec);
            let old = world.ready(&name);
            dies_after(&mut world, ms(after));
            let error = world.done(&name, reload(&spec)).unwrap_err();
            assert_eq!(error.code(), FailureCode::NotReady, "{after}");
            assert_eq!(world.ready(&name), old, "{after} of {instances}");
            world.run(ms(10_000));
            assert_eq!(world.ready(&name), old);
        }
    }
}

#[test]
fn an_old_worker_that_only_drains_is_put_back() {
    let (mut world, name) = running(1);
    let old = world.ready(&name);
    for process in world.processes.values_mut() {
        process.behaviour.drains_after = Some(ms(900));
    }
    dies_after(&mut world, ms(800));
    let op = world.ask(&name, reload(&web(1)));
    while world.core.worker(&old[0]).unwrap().phase() != WorkerPhase::Draining {
        world.run(ms(10));
    }
    world.answer(op).unwrap_err();
    assert_eq!(world.ready(&name), old, "it takes traffic again");
    assert_eq!(world.steered(&name).len(), 1);
    world.run(ms(10_000));
    assert_eq!(world.ready(&name), old, "and is not stopped later");
    assert!(world.events.iter().any(|e| e.what == What::WorkerReturned));
}

#[test]
fn a_way_back_that_starts_from_a_folder_which_the_failed_release_uses_too_says_so() {
    let (mut world, name) = running(2);
    let failing = |world: &mut World| {
        world.script = Box::new(|_, instance, revision| {
            if revision.number > 1 && instance == 1 {
                Behaviour::crashing()
            } else {
                Behaviour::good()
            }
        });
    };
    failing(&mut world);
    let error = world.done(&name, reload(&web(2))).unwrap_err();
    assert!(
        error.message(&name).contains("started again from /"),
        "{}",
        error.message(&name)
    );
    let mut elsewhere = web(2);
    elsewhere.cwd_resolved = "/releases/3".into();
    let error = world.done(&name, reload(&elsewhere)).unwrap_err();
    assert!(
        !error.message(&name).contains("started again"),
        "{}",
        error.message(&name)
    );
}

#[test]
fn the_port_of_an_app_that_is_given_up_is_closed_until_the_next_start() {
    let (mut world, name) = running(2);
    world.script = Box::new(|_, _, _| Behaviour::crashing());
    for id in world.ready(&name) {
        world.crash(&id);
    }
    world.run(ms(300));
    assert!(!world.listening.is_empty(), "one is coming: clients wait");
    world.run(ms(60_000));
    assert_eq!(world.view(&name).phase, AppPhase::Errored);
    assert!(
        world.listening.is_empty(),
        "no worker comes: clients are refused"
    );
    world.script = Box::new(|_, _, _| Behaviour::good());
    world.done(&name, Request::StartStopped).unwrap();
    assert_eq!((world.listening.len(), world.ready(&name).len()), (1, 2));
}

#[test]
fn a_worker_that_hangs_is_not_waited_for_until_its_queue_is_empty() {
    let mut spec = web(2);
    spec.liveness = Some(Probe {
        interval: ms(500),
        ..probe(Check::Tcp)
    });
    let (mut world, name) = running_as(&spec);
    let hung = world.ready(&name)[0].clone();
    let behaviour = &mut world.processes.get_mut(&hung).unwrap().behaviour;
    behaviour.hangs_after = Some(ms(0));
    behaviour.drains_after = None;
    world.run(ms(4000));
    let phases: Vec<WorkerPhase> = world.core.workers(&name).map(Worker::phase).collect();
    assert!(!phases.contains(&WorkerPhase::Draining), "{phases:?}");
    assert!(
        world.gone.contains(&hung) || phases.contains(&WorkerPhase::Stopping),
        "{phases:?}"
    );
}

#[test]
fn a_job_that_ends_well_has_succeeded() {
    let mut job = web(1);
    job.listen = Vec::new();
    job.readiness = probe(Check::Alive);
    job.restart.policy = RestartPolicy::Never;
    for (code, good) in [(0, true), (3, false)] {
        let mut world = World::new(1);
        let name = job.name.clone();
        world.script = Box::new(move |_, _, _| Behaviour {
            ready_after: None,
            ends_after: Some((ms(50), code)),
            ..Behaviour::good()
        });
        assert_eq!(world.done(&name, start(&job)).is_ok(), good, "{code}");
    }
}

#[test]
fn no_two_releases_share_a_count_of_restarts() {
    let (mut world, name) = running(1);
    for _ in 0..2 {
        world.run(ms(11_000));
        let id = world.ready(&name)[0].clone();
        world.crash(&id);
    }
    world.run(ms(5000));
    assert_eq!(world.view(&name).workers[0].restarts, 2);
    world.done(&name, reload(&web(1))).unwrap();
    assert_eq!(world.view(&name).workers[0].restarts, 0);
}
