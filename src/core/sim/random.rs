//! Random apps, wishes and faults.

use proptest::prelude::*;

use super::deaths::Death;
use super::*;

#[derive(Clone, Debug)]
enum Act {
    Start,
    StartStopped,
    Stop,
    Delete,
    Restart(u8),
    Reload(u8, bool),
    Scale(u16),
    Crash(u8),
    ForceStop,
}

/// The chances of each fault, in 256ths, for workers of even and odd revisions.
#[derive(Clone, Debug)]
struct Faults {
    spawn: u8,
    never_ready: u8,
    crash: u8,
    stubborn: u8,
    descendants: u8,
    leak: u8,
    unready: u8,
    hang: u8,
    listen: u8,
    port_test: u8,
}

impl Faults {
    fn behaviour(&self, random: &mut fastrand::Rng) -> Behaviour {
        let mut chance = |of: u8| random.u8(..) < of;
        let mut b = Behaviour::good();
        b.spawns = !chance(self.spawn);
        if chance(self.never_ready) {
            b.ready_after = None;
        }
        let crash = chance(self.crash);
        if chance(self.stubborn) {
            b.stops_after = None;
            b.drains_after = None;
        }
        b.descendants = chance(self.descendants);
        let tests = chance(self.port_test);
        b.bytes = if chance(self.leak) { 500 } else { 50 };
        let (unready, hang) = (chance(self.unready), chance(self.hang));
        let mut within = |limit: u64| ms(random.u64(1..limit));
        b.ready_after = b.ready_after.map(|_| within(1500));
        // Some drain for longer than the release that follows takes to prove itself, or to fail.
        b.drains_after = b.drains_after.map(|_| within(1500));
        b.ends_after = crash.then(|| (within(8000), 1));
        b.unready_after = unready.then(|| within(15_000));
        b.hangs_after = hang.then(|| within(15_000));
        let kinds = [
            PortTest::Exits,
            PortTest::BindsAnother,
            PortTest::Waits,
            PortTest::WaitsQuietly,
        ];
        b.port_test = random
            .choice(kinds)
            .filter(|_| tests)
            .unwrap_or(PortTest::No);
        b
    }
}

fn faults() -> impl Strategy<Value = Faults> {
    let often = prop_oneof![3 => Just(0u8), 2 => 0u8..60, 1 => 60u8..200];
    prop::array::uniform10(often).prop_map(
        |[
            spawn,
            never_ready,
            crash,
            stubborn,
            descendants,
            leak,
            unready,
            hang,
            listen,
            port_test,
        ]| Faults {
            spawn,
            never_ready,
            crash,
            stubborn,
            descendants,
            leak,
            unready,
            hang,
            listen,
            port_test,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Start),
        2 => Just(Act::StartStopped),
        2 => Just(Act::Stop),
        1 => Just(Act::Delete),
        1 => any::<u8>().prop_map(Act::Restart),
        6 => any::<(u8, bool)>().prop_map(|(to, queue)| Act::Reload(to, queue)),
        3 => (0u16..6).prop_map(Act::Scale),
        4 => any::<u8>().prop_map(Act::Crash),
        1 => Just(Act::ForceStop),
    ]
}

/// Milliseconds: often so few that the act before is still under way.
fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0u64..9000, 1 => 0u64..700]
}

/// As many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    let wish = std::env::var("PROPTEST_CASES").ok();
    wish.and_then(|n| n.parse().ok()).unwrap_or(128)
}

/// A reload that leaves two releases side by side if it fails, and what is done to them then.
fn mixed() -> impl Strategy<Value = (AppSpec, u64, Vec<(u64, Act)>)> {
    let after = prop_oneof![
        3 => (1u16..6).prop_map(Act::Scale),
        2 => any::<(u8, bool)>().prop_map(|(to, queue)| Act::Reload(to, queue)),
        2 => any::<u8>().prop_map(Act::Crash),
        1 => Just(Act::Stop),
        1 => Just(Act::StartStopped),
    ];
    let spec = (spec(), any::<bool>()).prop_map(|(mut spec, proof)| {
        spec.instances = spec.instances.max(2);
        spec.reload.auto_rollback = false;
        spec.reload.min_ready = ms(if proof { 700 } else { 0 });
        spec
    });
    (
        spec,
        100u64..4000,
        prop::collection::vec((pause(), after), 1..8),
    )
}

fn spec() -> impl Strategy<Value = AppSpec> {
    let check = prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    let policy = prop_oneof![4 => Just(RestartPolicy::Always), 1 => Just(RestartPolicy::OnFailure), 1 => Just(RestartPolicy::Never)];
    (
        1u16..6,
        1u16..4,
        check,
        policy,
        0usize..3,
        any::<(bool, bool, bool, bool)>(),
        0u32..6,
    )
        .prop_map(
            |(
                instances,
                surge,
                check,
                policy,
                ports,
                (min_ready, liveness, rollback, memory),
                restarts,
            )| {
                let mut spec = web(instances);
                spec.reload.max_surge = Surge::Workers(surge);
                spec.reload.auto_rollback = rollback;
                spec.reload.min_ready = ms(if min_ready { 700 } else { 0 });
                spec.readiness.check = match check {
                    0 => spec.readiness.check,
                    1 => Check::Tcp,
                    2 => Check::Notify,
                    _ => Check::Alive,
                };
                spec.listen = [port(80), port(81)].into_iter().take(ports).collect();
                spec.restart.policy = policy;
                spec.restart.max_restarts = restarts;
                spec.liveness = liveness.then(|| Probe {
                    interval: ms(1000),
                    ..probe(Check::Tcp)
                });
                spec.max_memory = memory.then_some(100);
                spec
            },
        )
}

fn play(
    seed: u64,
    specs: &[AppSpec],
    faults: [Faults; 2],
    acts: Vec<(u64, Act)>,
    death: Death,
) -> World {
    go_on(World::new(seed), specs, faults, acts, death)
}

fn go_on(
    mut world: World,
    specs: &[AppSpec],
    faults: [Faults; 2],
    acts: Vec<(u64, Act)>,
    death: Death,
) -> World {
    world.death = death;
    world.mischief = true;
    let refused = faults[0].listen;
    world.script =
        Box::new(move |random, _, revision| faults[revision.number as usize % 2].behaviour(random));
    world.refuses = Box::new(move |random, _, _| random.u8(..) < refused);
    let name = AppName::new("web");
    let pick = |n: u8| Box::new(specs[usize::from(n) % specs.len()].clone());
    for (pause, act) in acts {
        world.run(ms(pause));
        let request = match act {
            Act::Start => start(&specs[0]),
            Act::StartStopped => Request::StartStopped,
            Act::Stop => Request::Stop,
            Act::Delete => Request::Delete,
            Act::Restart(to) => Request::Restart {
                spec: pick(to),
                base_env: None,
            },
            Act::Reload(to, queue) => Request::Reload {
                spec: pick(to),
                base_env: None,
                queue,
            },
            Act::Scale(instances) => Request::Scale { instances },
            Act::Crash(which) => {
                let ids: Vec<WorkerId> = world
                    .core
                    .workers(&name)
                    .filter(|w| w.pid.is_some())
                    .map(|w| w.id.clone())
                    .collect();
                if !ids.is_empty() {
                    world.crash(&ids[usize::from(which) % ids.len()]);
                }
                continue;
            }
            Act::ForceStop => {
                world.handle(Input::ForceStop);
                continue;
            }
        };
        world.ask(&name, request);
    }
    world
}

fn settles(mut world: World) {
    // From now on no fresh process fails, and those that do are replaced.
    world.script = Box::new(|_, _, _| Behaviour::good());
    world.refuses = Box::new(|_, _, _| false);
    world.death = Death::Never;
    for process in world.processes.values_mut() {
        process.behaviour.bytes = 50;
        process.behaviour.unready_after = None;
        process.behaviour.hangs_after = None;
    }
    world.run(ms(90_000));
    checks::quiet(&world, &AppName::new("web"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(
        seed in any::<u64>(),
        specs in prop::collection::vec(spec(), 1..4),
        faults in [faults(), faults()],
        acts in prop::collection::vec((pause(), act()), 1..14),
    ) {
        let acts = std::iter::once((0, Act::Start)).chain(acts).collect();
        settles(play(seed, &specs, faults, acts, Death::Never));
    }

    #[test]
    fn whatever_happens_and_however_often_rsup_is_killed(
        seed in any::<u64>(),
        often in 2u32..100,
        specs in prop::collection::vec(spec(), 1..4),
        faults in [faults(), faults()],
        acts in prop::collection::vec((pause(), act()), 1..14),
    ) {
        let acts = std::iter::once((0, Act::Start)).chain(acts).collect();
        settles(play(seed, &specs, faults, acts, Death::Often(often)));
    }

    /// The last instance of the second release never comes up.
    #[test]
    fn whatever_is_done_to_two_releases_side_by_side(
        seed in any::<u64>(),
        often in prop_oneof![Just(None), (2u32..100).prop_map(Some)],
        (spec, pause, acts) in mixed(),
        faults in [faults(), faults()],
    ) {
        let mut world = World::new(seed);
        let last = spec.instances - 1;
        world.script = Box::new(move |_, instance, revision| match revision.number {
            2 if instance == last => Behaviour::crashing(),
            _ => Behaviour::good(),
        });
        world.ask(&spec.name, start(&spec));
        world.run(ms(8000));
        world.ask(&spec.name, reload(&spec));
        world.run(ms(pause));
        let death = often.map_or(Death::Never, Death::Often);
        settles(go_on(world, &[spec], faults, acts, death));
    }

    #[test]
    fn whatever_happened_before_a_reboot(
        seed in any::<u64>(),
        specs in prop::collection::vec(spec(), 1..4),
        faults in [faults(), faults()],
        acts in prop::collection::vec((pause(), act()), 1..6),
    ) {
        let acts = std::iter::once((0, Act::Start)).chain(acts).collect();
        let mut world = play(seed, &specs, faults, acts, Death::Never);
        world.script = Box::new(|_, _, _| Behaviour::good());
        world.refuses = Box::new(|_, _, _| false);
        world.reboots();
    }
}
