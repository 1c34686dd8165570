//! A start beside what is under way, and what a reload is to an app that is stopped.

use super::*;

fn running(instances: u16) -> (World, AppName, AppSpec) {
    let mut world = World::new(1);
    let spec = web(instances);
    world.done(&spec.name, start(&spec)).unwrap();
    (world, spec.name.clone(), spec)
}

#[test]
fn a_reload_of_a_stopped_app_starts_nothing_and_says_what_would() {
    let (mut world, name, spec) = running(2);
    world.done(&name, Request::Stop).unwrap();
    for queue in [false, true] {
        let request = Request::Reload {
            spec: Box::new(spec.clone()),
            base_env: None,
            queue,
        };
        let error = world.done(&name, request).unwrap_err();
        assert_eq!(error.code(), FailureCode::Stopped);
        let hint = error.hint(&name, OperationKind::Reload);
        assert_eq!(hint.as_deref(), Some("rsup start web"));
    }
    world.run(ms(10_000));
    assert_eq!(world.app(&name).workers().count(), 0);
    assert_eq!(world.core.revision(&name).unwrap().number, 1);
}

#[test]
fn a_reload_during_a_stop_is_refused_too() {
    let (mut world, name, spec) = running(2);
    let stop = world.ask(&name, Request::Stop);
    let error = world.done(&name, reload(&spec)).unwrap_err();
    assert_eq!(error.code(), FailureCode::Stopped);
    world.answer(stop).unwrap();
    assert_eq!(world.app(&name).workers().count(), 0);
}

#[test]
fn a_start_during_a_stop_waits_for_its_end_and_starts() {
    for by_name in [false, true] {
        let (mut world, name, spec) = running(2);
        let old = world.ready(&name);
        let stop = world.ask(&name, Request::Stop);
        let again = if by_name {
            Request::StartStopped
        } else {
            start(&spec)
        };
        let again = world.ask(&name, again);
        assert_eq!(world.core.waiting_start(&name), Some(again));
        assert!(world.core.ops().contains(&again));
        world.answer(stop).unwrap();
        assert!(old.iter().all(|id| world.gone.contains(id)));
        world.answer(again).unwrap();
        assert_eq!(world.ready(&name).len(), 2);
        assert_eq!(world.core.waiting_start(&name), None);
    }
}

#[test]
fn a_start_during_a_delete_makes_the_app_anew() {
    let (mut world, name, spec) = running(2);
    world.done(&name, reload(&spec)).unwrap();
    let delete = world.ask(&name, Request::Delete);
    let again = world.ask(&name, start(&spec));
    world.answer(delete).unwrap();
    world.answer(again).unwrap();
    assert_eq!(world.ready(&name).len(), 2);
    assert_eq!(world.core.revision(&name).unwrap().number, 1);
}

#[test]
fn a_stop_ends_a_start_that_waits_for_a_stop() {
    let (mut world, name, spec) = running(1);
    let _ = world.ask(&name, Request::Stop);
    let again = world.ask(&name, start(&spec));
    world.done(&name, Request::Stop).unwrap();
    let error = world.answer(again).unwrap_err();
    assert_eq!(error.code(), FailureCode::Superseded);
    assert!(
        error.message(&name).contains("the start of"),
        "{}",
        error.message(&name)
    );
    assert_eq!(world.app(&name).workers().count(), 0);
}

#[test]
fn a_second_start_waits_until_all_serve() {
    let (mut world, name, _) = running(2);
    let error = world.done(&name, Request::StartStopped).unwrap_err();
    assert_eq!(error.code(), FailureCode::AlreadyRunning);
    // One has just died, and its next run is on its way.
    let victim = world.ready(&name).remove(0);
    world.crash(&victim);
    world.done(&name, Request::StartStopped).unwrap();
    assert_eq!(world.ready(&name).len(), 2);
}
