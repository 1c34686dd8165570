//! Programs that test their port by connecting to it.

use super::super::hiding::Hiding;
use super::*;

const TESTS: [PortTest; 4] = [
    PortTest::Exits,
    PortTest::BindsAnother,
    PortTest::Waits,
    PortTest::WaitsQuietly,
];

fn world(test: PortTest) -> (World, AppName) {
    let mut world = World::new(1);
    world.script = Box::new(move |_, _, _| Behaviour::testing(test));
    (world, web(1).name)
}

/// It is not started again by itself.
fn once() -> AppSpec {
    let mut spec = web(1);
    spec.restart.policy = RestartPolicy::Never;
    spec
}

fn known(world: &World, name: &AppName) -> Hiding {
    let app = world.app(name);
    app.hiding(app.spec())
}

fn events(world: &World, name: &AppName) -> String {
    let of = |event: &&Event| event.app == *name;
    let lines = world.events.iter().filter(of);
    lines.map(|event| event.line() + "\n").collect()
}

#[test]
fn the_first_start_succeeds_and_what_it_found_out_is_remembered() {
    for test in TESTS {
        for instances in [1, 3] {
            let (mut world, name) = world(test);
            world
                .done(&name, start(&web(instances)))
                .unwrap_or_else(|error| panic!("{test:?}: {error:?}"));
            assert_eq!(world.ready(&name).len(), usize::from(instances));
            assert!(
                matches!(known(&world, &name), Hiding::Needed { .. }),
                "{test:?}"
            );
            assert!(
                world
                    .app(&name)
                    .sets
                    .values()
                    .flat_map(|set| set.instances.values())
                    .all(|i| i.restarts == 0),
                "no failure is counted"
            );
            assert_eq!(
                events(&world, &name)
                    .matches("from now on rsup hides")
                    .count(),
                1,
                "{}",
                events(&world, &name)
            );
            assert!(world.core.hides_since(&name).is_some());
            let before = world.spawned;
            world.restore();
            world
                .done(
                    &name,
                    Request::Restart {
                        spec: Box::new(web(instances)),
                        base_env: None,
                    },
                )
                .unwrap();
            world.done(&name, reload(&web(instances))).unwrap();
            assert_eq!(
                world.spawned - before,
                2 * u64::from(instances),
                "{test:?}: no worker fails any more"
            );
        }
    }
}

#[test]
fn a_reload_to_such_a_program_does_not_fail_and_one_away_from_it_forgets() {
    for test in TESTS {
        let mut world = World::new(1);
        let name = web(2).name;
        world.done(&name, start(&web(2))).unwrap();
        assert_eq!(known(&world, &name), Hiding::Unneeded);
        world.script = Box::new(move |_, _, r| {
            if r.spec.command == ["other"] {
                Behaviour::testing(test)
            } else {
                Behaviour::good()
            }
        });
        let mut other = web(2);
        other.command = vec!["other".into()];
        world
            .done(&name, reload(&other))
            .unwrap_or_else(|error| panic!("{test:?}: {error:?}"));
        assert!(
            matches!(known(&world, &name), Hiding::Needed { .. }),
            "{test:?}"
        );
        assert_eq!(
            world.core.workers(&name).filter(|w| w.hides_port()).count(),
            2
        );
        world.done(&name, reload(&web(2))).unwrap();
        assert_eq!(
            world.core.workers(&name).filter(|w| w.hides_port()).count(),
            0
        );
        assert_eq!(
            world.app(&name).hiding.len(),
            1,
            "{:?}",
            world.app(&name).hiding
        );
    }
}

#[test]
fn without_traces_a_failure_is_what_it_was() {
    let mut world = World::new(1);
    let spec = once();
    let name = spec.name.clone();
    world.script = Box::new(|_, _, _| Behaviour::crashing());
    world.done(&name, start(&spec)).unwrap_err();
    assert_eq!(world.spawned, 1);
    assert_eq!(known(&world, &name), Hiding::Unknown);
}

/// Connections of another process look like the traces of a test.
#[test]
fn a_failure_that_hiding_does_not_help_is_tried_once_and_then_told() {
    let mut world = World::new(1);
    let name = web(1).name;
    world.script = Box::new(|_, _, _| Behaviour {
        port_test: PortTest::Exits,
        ..Behaviour::crashing()
    });
    let error = world.done(&name, start(&once())).unwrap_err();
    assert!(
        error.message(&name).contains("exited with code 1"),
        "{}",
        error.message(&name)
    );
    assert_eq!(world.spawned, 2);
}

#[test]
fn the_configuration_has_the_last_word() {
    let (mut world, name) = world(PortTest::Exits);
    let mut spec = once();
    spec.hide_port = HidePort::Never;
    world.done(&name, start(&spec)).unwrap_err();
    assert_eq!(world.spawned, 1);
    world.done(&name, Request::Delete).unwrap();
    spec.hide_port = HidePort::Always;
    world.done(&name, start(&spec)).unwrap();
    assert_eq!(world.spawned, 2);
    assert_eq!(world.core.hides_since(&name), None, "it was not found out");
}

#[test]
fn it_is_remembered_over_a_reboot() {
    let (mut world, name) = world(PortTest::Exits);
    world.done(&name, start(&web(1))).unwrap();
    let before = world.spawned;
    world.reboot();
    world.run(ms(30_000));
    assert_eq!(world.ready(&name).len(), 1);
    assert_eq!(world.spawned - before, 1);
    assert!(world.core.hides_since(&name).is_some());
}

/// No process can answer its calls of connect any more.
#[test]
fn a_worker_that_nobody_hears_is_replaced_without_a_gap() {
    let (mut world, name) = world(PortTest::Exits);
    world.done(&name, start(&web(1))).unwrap();
    let [old] = world.ready(&name)[..]
        .to_vec()
        .try_into()
        .unwrap_or_else(|all| panic!("{all:?}"));
    let pid = world.core.worker(&old).unwrap().pid.unwrap();
    world.core.revive(
        world.now,
        &BTreeMap::from([(old.clone(), Found::Deaf { pid })]),
    );
    let effects = world.effects();
    assert!(
        effects.iter().any(|effect| matches!(
            effect,
            Effect::Spawn {
                hide_port: true,
                ..
            }
        )),
        "{effects:#?}"
    );
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Signal { .. })),
        "it serves on: {effects:#?}"
    );
    assert!(world.core.worker(&old).unwrap().ready());
}
