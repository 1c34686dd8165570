//! Crashes without end.

use super::*;

fn named(name: &str, max_restarts: u32) -> AppSpec {
    let mut spec = web(2);
    spec.name = AppName::new(name);
    spec.listen = vec![port(if name == "calm" { 81 } else { 80 })];
    spec.restart.max_restarts = max_restarts;
    spec.restart.backoff = ms(1);
    spec.restart.backoff_max = ms(2);
    spec
}

/// The calm app lives in peace, the stormy one crashes whenever it is started.
fn storm(max_restarts: u32) -> (World, AppName, AppName, Vec<WorkerId>) {
    let mut world = World::new(3);
    let (calm, stormy) = (named("calm", 3), named("stormy", max_restarts));
    world.done(&calm.name, start(&calm)).unwrap();
    let peaceful = world.ready(&calm.name);
    world.script = Box::new(|_, _, _| Behaviour {
        ends_after: Some((ms(1), 1)),
        ..Behaviour::crashing()
    });
    world.done(&stormy.name, start(&stormy)).unwrap_err();
    (world, calm.name, stormy.name, peaceful)
}

#[test]
fn ten_thousand_crashes_leave_nothing_but_a_number() {
    let (mut world, calm, stormy, peaceful) = storm(u32::MAX);
    let mut sizes = Vec::new();
    for thousands in 1..=10 {
        while world.spawned < thousands * 1000 + 2 {
            world.run(ms(50));
            world.gone.clear();
        }
        sizes.push(put_down(&world.core).len());
    }
    let restarts: u32 = world.view(&stormy).workers.iter().map(|w| w.restarts).sum();
    assert!(restarts >= 9_990, "{restarts}");
    // Numbers and times have more digits than before; nothing else may have grown.
    assert!(sizes[9] < sizes[1] + 500, "{sizes:?}");
    assert_eq!(world.ready(&calm), peaceful);
    assert_eq!(world.view(&calm).phase, AppPhase::Ready);
}

#[test]
fn the_storm_ends_at_max_restarts() {
    let (mut world, calm, stormy, peaceful) = storm(5);
    world.run(ms(60_000));
    let view = world.view(&stormy);
    assert_eq!(view.phase, AppPhase::Errored, "{view:#?}");
    assert!(view.workers.iter().all(|w| {
        w.restarts == 5
            && w.reason
                .as_ref()
                .unwrap()
                .contains("given up after 5 restarts")
    }));
    assert_eq!(world.spawned, 2 + 2 * 6);
    assert_eq!(world.ready(&calm), peaceful);
}
