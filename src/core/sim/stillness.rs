//! The daemon is stopped and goes on, or the whole machine: hours have passed, and no worker is to blame.

use super::super::worker::State;
use super::*;

/// Who stands still.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// The workers run on: what they do meanwhile is learned all at once.
    Daemon,
    /// The workers too.
    Machine,
}

impl World {
    /// The tries under way run out of time.
    fn stand_still(&mut self, gap: Duration, who: Who) {
        self.now = self.now + gap;
        self.blind = self.sequence;
        self.stood_still = true;
        if who == Who::Machine {
            let coming = std::mem::take(&mut self.coming);
            let blind = |input: &Input| matches!(input, Input::Probed { .. });
            self.coming = coming
                .into_iter()
                .map(|((at, n), input)| {
                    (
                        if blind(&input) {
                            (at, n)
                        } else {
                            (at + gap, n)
                        },
                        input,
                    )
                })
                .collect();
            self.processes
                .values_mut()
                .for_each(|p| p.started = p.started + gap);
        }
    }

    /// The events of kills.
    fn killed(&self) -> Vec<String> {
        self.events
            .iter()
            .map(Event::line)
            .filter(|text| text.contains("was killed"))
            .collect()
    }
}

/// One failure of anything would have consequences.
fn touchy() -> AppSpec {
    let mut spec = web(3);
    spec.liveness = Some(Probe {
        interval: ms(500),
        failure_threshold: 1,
        ..probe(Check::Tcp)
    });
    spec.readiness.failure_threshold = 1;
    spec.reload.min_ready = ms(300);
    spec.reload.deadline = ms(30_000);
    spec
}

const HOURS: Duration = Duration::from_secs(5 * 3600);

/// At every point of a reload.
fn at_each_instant(gap: Duration, who: Who) {
    let name = AppName::new("web");
    for instant in 0..150 {
        let mut world = World::new(instant);
        world.done(&name, start(&touchy())).unwrap();
        world.run(ms(3000));
        let op = world.ask(&name, reload(&touchy()));
        let until = world.now + Duration::from_secs(60);
        for _ in 0..instant {
            world.step(until);
        }
        world.core.poll_timeout(world.now);
        let over = world.finished.contains_key(&op);
        world.stand_still(gap, who);
        world
            .answer(op)
            .unwrap_or_else(|why| panic!("instant {instant}: {why:?}"));
        world.run(ms(20_000));
        assert!(
            world.killed().is_empty(),
            "instant {instant}: {:?}",
            world.killed()
        );
        assert_eq!(
            world.spawned, 6,
            "instant {instant}: a worker was replaced other than by the reload"
        );
        assert_eq!(world.ready(&name).len(), 3);
        let told = world
            .events
            .iter()
            .any(|event| event.line().contains("stood still"));
        assert!(told || over, "instant {instant}: it is not said");
    }
}

#[test]
fn a_daemon_that_was_stopped_for_hours_kills_nobody_and_aborts_nothing() {
    at_each_instant(HOURS, Who::Daemon);
}

#[test]
fn a_machine_that_was_stopped_for_hours_finds_everything_as_it_was() {
    at_each_instant(HOURS, Who::Machine);
}

#[test]
fn a_short_standstill_just_before_a_deadline_counts_as_well() {
    // listen_timeout is 3 s: one second of it is left, of which nothing may be missing.
    for who in [Who::Daemon, Who::Machine] {
        let mut world = World::new(1);
        let name = AppName::new("web");
        world.script = Box::new(|_, _, _| Behaviour {
            ready_after: Some(ms(2800)),
            ..Behaviour::good()
        });
        let op = world.ask(&name, start(&touchy()));
        world.run(ms(300));
        world.core.poll_timeout(world.now);
        world.stand_still(ms(2600), who);
        world.answer(op).unwrap();
        assert_eq!(world.spawned, 3);
    }
}

#[test]
fn whoever_is_told_to_stop_has_its_time_after_a_standstill() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.script = Box::new(|_, _, _| Behaviour {
        stops_after: Some(ms(1500)),
        ..Behaviour::good()
    });
    world.done(&name, start(&touchy())).unwrap();
    let op = world.ask(&name, Request::Stop);
    while !world
        .core
        .workers(&name)
        .any(|w| matches!(w.state, State::Stopping { .. }))
    {
        let until = world.now + ms(2000);
        world.step(until);
    }
    world.core.poll_timeout(world.now);
    world.stand_still(HOURS, Who::Machine);
    world.answer(op).unwrap();
    assert!(world.killed().is_empty());
}

#[test]
fn a_real_failure_is_one_after_a_standstill_too() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.done(&name, start(&touchy())).unwrap();
    for process in world.processes.values_mut() {
        process.behaviour.hangs_after = Some(ms(0));
    }
    world.core.poll_timeout(world.now);
    world.stand_still(HOURS, Who::Daemon);
    world.run(ms(10_000));
    assert!(world.spawned > 3, "those that hang are replaced");
    // And what is too slow is still too slow.
    let mut world = World::new(1);
    world.script = Box::new(|_, _, _| Behaviour::never_ready());
    let op = world.ask(&name, start(&touchy()));
    world.run(ms(500));
    world.core.poll_timeout(world.now);
    world.stand_still(HOURS, Who::Machine);
    let error = world.answer(op).unwrap_err();
    assert!(error.message(&name).contains("listen_timeout"), "{error:?}");
}

#[test]
fn what_could_not_be_asked_is_no_failure() {
    let mut world = World::new(1);
    let name = AppName::new("web");
    world.done(&name, start(&touchy())).unwrap();
    // Nothing is asked: each try is answered so.
    for _ in 0..200 {
        let until = world.now + ms(60_000);
        let waiting: Vec<(Time, u64)> = world
            .coming
            .iter()
            .filter(|(_, input)| matches!(input, Input::Probed { .. }))
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            if let Some(Input::Probed {
                worker, purpose, ..
            }) = world.coming.remove(&key)
            {
                world.handle(Input::NotProbed {
                    worker,
                    purpose,
                    reason: "too many open files".into(),
                });
            }
        }
        world.step(until);
    }
    assert_eq!(world.spawned, 3);
    let view = world.view(&name);
    assert_eq!(view.phase, AppPhase::Ready);
    assert!(
        view.workers.iter().any(|w| w
            .reason
            .as_ref()
            .is_some_and(|r| r.contains("rsup could not ask"))),
        "{view:#?}"
    );
    // Once there is an answer again, all is well.
    world.run(ms(30_000));
    assert!(world.view(&name).workers.iter().all(|w| w.reason.is_none()));
}
