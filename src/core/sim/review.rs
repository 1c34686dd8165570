//! Stories of wakes, ends of actions and states that are taken over.

use super::*;
use crate::model::What;

fn running(spec: &AppSpec) -> (World, AppName) {
    let mut world = World::new(1);
    world.done(&spec.name, start(spec)).unwrap();
    (world, spec.name.clone())
}

/// The daemon takes what is in its inbox before it looks at the clock.
#[test]
fn a_replacement_has_proved_itself_in_time_though_another_app_is_heard_first() {
    let mut spec = web(1);
    spec.readiness.check = Check::Tcp;
    spec.max_memory = Some(100);
    spec.reload.min_ready = ms(5000);
    let (mut world, name) = running(&spec);
    let old = world.ready(&name)[0].clone();
    let mut other = web(1);
    other.name = AppName::new("other");
    other.listen = vec![port(81)];
    other.readiness.check = Check::Tcp;
    world.done(&other.name, start(&other)).unwrap();
    for _ in 0..2 {
        world.handle(Input::Memory {
            worker: old.clone(),
            bytes: 1000,
        });
    }
    world.run(ms(2000));
    let proved = world
        .core
        .workers(&name)
        .find_map(|w| match w.state {
            super::super::worker::State::Ready { since, .. } if w.id != old => {
                Some(since + ms(5000))
            }
            _ => None,
        })
        .unwrap();
    let left = proved.since(world.now);
    world.run(left - ms(1));
    assert!(world.ready(&name).contains(&old));
    world.core.poll_timeout(world.now);
    world.now = proved + ms(1);
    let heard = world.ready(&other.name)[0].clone();
    world.handle(Input::Memory {
        worker: heard,
        bytes: 10,
    });
    world.run(ms(100));
    assert!(!world.ready(&name).contains(&old), "its wake is lost");
}

#[test]
fn a_reload_that_was_cut_short_by_a_death_has_changed_nothing_for_a_daemon_that_stops_all() {
    let (mut world, name) = running(&web(2));
    world.script = Box::new(|_, _, _| Behaviour::never_ready());
    world.ask(&name, reload(&web(4)));
    world.run(ms(500));
    let written = put_down(&world.core);
    world.between();
    world.core = read_back(&written);
    world.core.halt_is_over(true);
    world.come_back();
    world.run(ms(60_000));
    let app = world.app(&name);
    assert_eq!(app.wanted, Wanted::Down);
    assert_eq!(
        (app.current, app.instances),
        (1, 2),
        "the reload was not done"
    );
}

#[test]
fn the_port_is_closed_when_what_another_release_had_left_is_gone_too() {
    let mut spec = web(2);
    spec.reload.auto_rollback = false;
    let (mut world, name) = running(&spec);
    world.script = Box::new(|_, instance, _| match instance {
        0 => Behaviour::good(),
        _ => Behaviour::crashing(),
    });
    world.done(&name, reload(&spec)).unwrap_err();
    world.run(ms(10_000));
    world.script = Box::new(|_, _, _| Behaviour::crashing());
    let _ = world.done(&name, Request::Scale { instances: 1 });
    world.run(ms(60_000));
    let left = world.ready(&name);
    assert_eq!(left.len(), 1, "{:#?}", world.app(&name));
    world.crash(&left[0]);
    world.run(ms(60_000));
    assert!(world.ready(&name).is_empty());
    assert!(world.listening.is_empty(), "{:#?}", world.app(&name));
}

fn events(world: &mut World, input: Input) -> Vec<What> {
    world.core.handle(world.now, input);
    std::iter::from_fn(|| world.core.poll_effect())
        .filter_map(|effect| match effect {
            Effect::Record(event) => Some(event.what),
            _ => None,
        })
        .collect()
}

#[test]
fn an_action_that_another_one_ends_says_so() {
    let (mut world, name) = running(&web(2));
    world.ask(&name, reload(&web(2)));
    world.run(ms(100));
    let stop = Input::Request {
        op: OpId(99),
        app: name,
        request: Request::Stop,
        cause: Default::default(),
    };
    let events = events(&mut world, stop);
    assert!(
        matches!(
            events[..2],
            [
                What::ActionSuperseded {
                    kind: OperationKind::Reload,
                    by: OperationKind::Stop
                },
                What::ActionBegan { .. }
            ]
        ),
        "{events:#?}"
    );
}

#[test]
fn a_start_that_gets_no_sockets_is_said_to_have_failed() {
    let mut world = World::new(1);
    let spec = web(1);
    let begin = Input::Request {
        op: OpId(99),
        app: spec.name.clone(),
        request: start(&spec),
        cause: Default::default(),
    };
    events(&mut world, begin);
    let refused = Input::Listening {
        app: spec.name.clone(),
        result: Err("in use".into()),
    };
    let events = events(&mut world, refused);
    let failed = |what: &What| {
        matches!(
            what,
            What::ActionFailed {
                kind: OperationKind::Start,
                ..
            }
        )
    };
    assert!(events.iter().any(failed), "{events:#?}");
}

/// Not a limit, a look: `cargo test --lib costs -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn costs_of_events() {
    let mut big = web(250);
    big.reload.min_ready = ms(700);
    let mut core = Supervisor::new(1);
    let measure = |core: &mut Supervisor, what: &str, now: u64, inputs: Vec<Input>| {
        let (n, at) = (inputs.len() as u32, std::time::Instant::now());
        for input in inputs {
            core.handle(Time(ms(now)), input);
            while core.poll_effect().is_some() {}
            core.poll_timeout(Time(ms(now)));
        }
        println!("{what}: {:?} each", at.elapsed() / n.max(1));
    };
    let request = |name: &AppName, request: Request| Input::Request {
        op: OpId(1),
        app: name.clone(),
        request,
        cause: Default::default(),
    };
    let listening = |name: &AppName| Input::Listening {
        app: name.clone(),
        result: Ok(()),
    };
    let ids = |core: &Supervisor, name: &AppName| -> Vec<WorkerId> {
        core.workers(name).map(|w| w.id.clone()).collect()
    };
    let begin = vec![request(&big.name, start(&big)), listening(&big.name)];
    measure(&mut core, "start of 250", 0, begin);
    let spawned = |w: WorkerId| Input::Spawned { worker: w, pid: 7 };
    let inputs = ids(&core, &big.name).into_iter().map(spawned).collect();
    measure(&mut core, "spawned, of 250", 1, inputs);
    measure(&mut core, "tick", 2, vec![Input::Tick]);
    let probed = |w: WorkerId| Input::Probed {
        worker: w,
        purpose: Purpose::Readiness,
        result: Ok(()),
    };
    let inputs = ids(&core, &big.name).into_iter().map(probed).collect();
    measure(&mut core, "ready, of 250", 3, inputs);
    let memory = |w: WorkerId| Input::Memory {
        worker: w,
        bytes: 9,
    };
    let inputs = ids(&core, &big.name).into_iter().map(memory).collect();
    measure(&mut core, "memory, of 250 that serve", 2000, inputs);
    let mut core = Supervisor::new(1);
    let names: Vec<AppName> = (0..1000)
        .map(|i| AppName::new(format!("app-{i}")))
        .collect();
    for name in &names {
        let mut spec = web(1);
        spec.name = name.clone();
        core.handle(Time(ms(0)), request(name, start(&spec)));
        core.handle(Time(ms(0)), listening(name));
        let worker = ids(&core, name).remove(0);
        core.handle(Time(ms(0)), spawned(worker.clone()));
        while core.poll_effect().is_some() {}
    }
    core.poll_timeout(Time(ms(0)));
    measure(
        &mut core,
        "tick of 1000 apps, all due",
        0,
        vec![Input::Tick],
    );
    for name in &names {
        let worker = ids(&core, name).remove(0);
        core.handle(Time(ms(3)), probed(worker));
        while core.poll_effect().is_some() {}
    }
    measure(
        &mut core,
        "tick of 1000 apps, none due",
        4,
        vec![Input::Tick; 20],
    );
    let input = memory(ids(&core, &names[5]).remove(0));
    measure(&mut core, "memory of one of 1000 apps", 4, vec![input; 20]);
}
