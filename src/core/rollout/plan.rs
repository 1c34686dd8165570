//! The planner: a pure function from the wanted workers of each release and a view of the slots to
//! the next moves.
//!
//! Start, scale, reload, rollback, and the replacement of a worker that leaks or hangs are one
//! plan: each release gets its wanted workers, and surplus ones leave, without the plan itself ever
//! taking the app below the floor or above the ceiling.

/// The bounds of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The plan retires no worker that stays if fewer than this many, of all releases, would serve.
    pub floor: u16,
    /// Live workers of any kind that the plan never goes above.
    pub ceiling: u16,
    /// A worker starts only once every other one of the same instance is gone.
    pub stop_first: bool,
}

/// What is wanted of one release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetView {
    pub revision: u64,
    pub replicas: u16,
    /// By number.
    pub instances: Vec<(u16, InstanceView)>,
}

/// What a release's restart policy decides for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceView {
    pub start: Start,
    /// The slot of its last worker.
    pub last_slot: Option<u16>,
}

/// Whether a worker is started for an instance that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Now,
    /// After its backoff; until then it counts as present.
    Later,
    /// It was given up, or has ended for good: it counts as present.
    Never,
    /// It does not count as missing: a rollout took its worker away.
    NotMissed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotView {
    /// No process: the slot is free.
    Parked,
    Live {
        revision: u64,
        instance: u16,
        /// False: another worker of its release replaces it.
        stays: bool,
        stage: Stage,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not ready yet (or not any more, or not for long enough).
    Pending,
    /// Takes traffic and counts as available.
    Available,
    /// It was ready and is not now. It counts as serving, since there may be no other, but leaves
    /// before those that do serve.
    Unready,
    /// Out of the traffic, without its stop signal yet: it can return.
    Draining,
    /// Being stopped.
    Terminating,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Put a draining worker back into the traffic.
    Return { slot: u16 },
    /// Start a worker of the release for the instance in this parked slot.
    Start {
        slot: u16,
        revision: u64,
        instance: u16,
    },
    /// Take the worker out of the traffic, drain and stop it.
    Retire { slot: u16 },
}

#[derive(Clone, Copy, Debug)]
struct Live {
    slot: u16,
    revision: u64,
    instance: u16,
    stays: bool,
    stage: Stage,
}

impl Live {
    /// Whether it is neither leaving nor gone.
    fn is_active(&self) -> bool {
        match self.stage {
            Stage::Pending | Stage::Available | Stage::Unready => true,
            Stage::Draining | Stage::Terminating => false,
        }
    }
}

/// The moves that are possible now. Of two sets with missing workers the first is served first.
pub fn plan(policy: Policy, slots: &[SlotView], sets: &[SetView]) -> Vec<Move> {
    let live: Vec<Live> = (0u16..)
        .zip(slots)
        .filter_map(|(slot, view)| match *view {
            SlotView::Parked => None,
            SlotView::Live {
                revision,
                instance,
                stays,
                stage,
            } => Some(Live {
                slot,
                revision,
                instance,
                stays,
                stage,
            }),
        })
        .collect();
    let mut moves = put_back(&live, sets);
    let returned: Vec<u16> = moves
        .iter()
        .filter_map(|step| match step {
            Move::Return { slot } => Some(*slot),
            Move::Start { .. } | Move::Retire { .. } => None,
        })
        .collect();
    surplus(&live, sets, &mut moves);
    faulty(policy, &live, sets, &mut moves);
    start(policy, slots, &live, &returned, sets, &mut moves);
    moves
}

/// The number of workers that a set lacks.
fn missing(live: &[Live], set: &SetView) -> usize {
    let held = |number: u16| {
        live.iter()
            .any(|w| w.revision == set.revision && w.instance == number && w.stays && w.is_active())
    };
    let there = live
        .iter()
        .filter(|w| w.revision == set.revision && w.stays && w.is_active())
        .count();
    let waiting = set
        .instances
        .iter()
        .filter(|(number, view)| {
            matches!(view.start, Start::Later | Start::Never) && !held(*number)
        })
        .count();
    usize::from(set.replicas).saturating_sub(there + waiting)
}

/// Returns draining workers that are wanted after all: quicker and surer than any start.
fn put_back(live: &[Live], sets: &[SetView]) -> Vec<Move> {
    let mut moves = Vec::new();
    for set in sets {
        let of_set = |w: &&Live| w.revision == set.revision && w.stays;
        let held = |number: u16| {
            live.iter()
                .filter(of_set)
                .any(|w| w.instance == number && w.is_active())
        };
        let back = live
            .iter()
            .filter(of_set)
            .filter(|w| w.stage == Stage::Draining && !held(w.instance))
            .filter(|w| {
                set.instances
                    .iter()
                    .any(|(number, _)| *number == w.instance)
            });
        moves.extend(
            back.take(missing(live, set))
                .map(|w| Move::Return { slot: w.slot }),
        );
    }
    moves
}

/// Whether another available worker, of any release, serves in its place.
fn is_replaced(live: &[Live], worker: &Live) -> bool {
    live.iter().any(|w| {
        w.slot != worker.slot
            && w.instance == worker.instance
            && w.stays
            && w.stage == Stage::Available
    })
}

/// Retires what a release has beyond its wanted workers, the least useful first.
fn surplus(live: &[Live], sets: &[SetView], moves: &mut Vec<Move>) {
    let set_of = |w: &Live| sets.iter().find(|set| set.revision == w.revision);
    let known = |w: &Live| {
        set_of(w).is_some_and(|set| {
            set.instances
                .iter()
                .any(|(number, _)| *number == w.instance)
        })
    };
    for w in live.iter().filter(|w| w.is_active() && w.stays) {
        if set_of(w).is_none_or(|set| set.replicas == 0) {
            moves.push(Move::Retire { slot: w.slot });
        }
    }
    for set in sets.iter().filter(|set| set.replicas > 0) {
        let mut there: Vec<&Live> = live
            .iter()
            .filter(|w| w.revision == set.revision && w.stays && w.is_active())
            .collect();
        let many = there.len().saturating_sub(usize::from(set.replicas));
        if many == 0 {
            continue;
        }
        there.sort_by_cached_key(|w| {
            let value = match w.stage {
                Stage::Available => 2,
                Stage::Unready => 1,
                Stage::Pending | Stage::Draining | Stage::Terminating => 0,
            };
            (value, known(w), !is_replaced(live, w), w.slot)
        });
        moves.extend(
            there
                .iter()
                .take(many)
                .map(|w| Move::Retire { slot: w.slot }),
        );
    }
}

/// Retires workers that are replaced once another one serves in their place, or enough others do.
fn faulty(policy: Policy, live: &[Live], sets: &[SetView], moves: &mut Vec<Move>) {
    let wanted = |w: &Live| {
        sets.iter()
            .any(|set| set.revision == w.revision && set.replicas > 0)
    };
    let mut serving = 0;
    let mut faulty = Vec::new();
    for w in live.iter().filter(|w| w.is_active()) {
        match (w.stage, w.stays) {
            (Stage::Available, true) => serving += usize::from(wanted(w)),
            (Stage::Available | Stage::Unready, false) => {
                serving += 1;
                faulty.push((w.stage == Stage::Available, !is_replaced(live, w), w.slot));
            }
            (Stage::Pending, false) => moves.push(Move::Retire { slot: w.slot }),
            (Stage::Pending | Stage::Unready, true) | (Stage::Draining | Stage::Terminating, _) => {
            }
        }
    }
    faulty.sort_unstable();
    let spare = serving.max(usize::from(policy.floor)) - usize::from(policy.floor);
    let goes = |(i, (_, alone, _)): &(usize, &(bool, bool, u16))| {
        *i < spare || (!alone && nothing_comes(live, sets))
    };
    moves.extend(
        faulty
            .iter()
            .enumerate()
            .filter(goes)
            .map(|(_, (.., slot))| Move::Retire { slot: *slot }),
    );
}

/// Whether the missing workers will not be started.
fn nothing_comes(live: &[Live], sets: &[SetView]) -> bool {
    sets.iter().all(|set| {
        let there = live
            .iter()
            .filter(|w| w.revision == set.revision && w.stays && w.stage == Stage::Available);
        let held = |number: u16| there.clone().any(|w| w.instance == number);
        let over = set
            .instances
            .iter()
            .filter(|(number, view)| view.start == Start::Never && !held(*number));
        there.clone().count() + over.count() >= usize::from(set.replicas)
    })
}

fn start(
    policy: Policy,
    slots: &[SlotView],
    live: &[Live],
    returned: &[u16],
    sets: &[SetView],
    moves: &mut Vec<Move>,
) {
    let mut room = usize::from(policy.ceiling).saturating_sub(live.len());
    let mut parked: Vec<u16> = (0u16..)
        .zip(slots)
        .filter(|(_, view)| **view == SlotView::Parked)
        .map(|(slot, _)| slot)
        .collect();
    for set in sets {
        let back = live
            .iter()
            .filter(|w| w.revision == set.revision && returned.contains(&w.slot))
            .count();
        let mut missing = missing(live, set).saturating_sub(back);
        if missing == 0 {
            continue;
        }
        let held = |number: u16| {
            live.iter().any(|w| {
                w.instance == number
                    && (policy.stop_first
                        || (w.revision == set.revision
                            && w.stays
                            && (w.is_active() || returned.contains(&w.slot))))
            })
        };
        let open = set
            .instances
            .iter()
            .filter(|(number, view)| view.start == Start::Now && !held(*number));
        for (instance, view) in open {
            if missing == 0 {
                break;
            }
            if room == 0 || parked.is_empty() {
                return;
            }
            let at = parked
                .iter()
                .position(|slot| view.last_slot == Some(*slot))
                .unwrap_or(0);
            moves.push(Move::Start {
                slot: parked.remove(at),
                revision: set.revision,
                instance: *instance,
            });
            room -= 1;
            missing -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategy::{Other, Seen, Wish, rolling};
    use super::*;

    const PARKED: SlotView = SlotView::Parked;
    const OLD: u64 = 1;
    const NEW: u64 = 2;

    fn live(revision: u64, instance: u16, stage: Stage) -> SlotView {
        SlotView::Live {
            revision,
            instance,
            stays: true,
            stage,
        }
    }

    fn faulty(instance: u16, stage: Stage) -> SlotView {
        SlotView::Live {
            revision: NEW,
            instance,
            stays: false,
            stage,
        }
    }

    fn policy(instances: u16) -> Policy {
        Policy {
            floor: instances,
            ceiling: instances + 1,
            stop_first: false,
        }
    }

    fn set(revision: u64, replicas: u16, instances: &[Start]) -> SetView {
        SetView {
            revision,
            replicas,
            instances: (0..)
                .zip(instances)
                .map(|(number, start)| {
                    let view = InstanceView {
                        start: *start,
                        last_slot: None,
                    };
                    (number, view)
                })
                .collect(),
        }
    }

    fn retire(slot: u16) -> Move {
        Move::Retire { slot }
    }

    fn started(slot: u16, instance: u16) -> Move {
        Move::Start {
            slot,
            revision: NEW,
            instance,
        }
    }

    #[test]
    fn a_replacement_starts_in_the_spare_slot_and_nothing_goes() {
        let slots = [
            live(OLD, 0, Stage::Available),
            live(OLD, 1, Stage::Available),
            PARKED,
        ];
        let sets = [
            set(OLD, 2, &[Start::NotMissed; 2]),
            set(NEW, 2, &[Start::Now; 2]),
        ];
        assert_eq!(plan(policy(2), &slots, &sets), [started(2, 0)]);
    }

    #[test]
    fn the_replaced_worker_goes_first_but_an_unready_one_before_it() {
        let sets = [
            set(OLD, 1, &[Start::NotMissed; 2]),
            set(NEW, 2, &[Start::Now; 2]),
        ];
        let slots = |one, two| {
            [
                live(OLD, 0, one),
                live(OLD, 1, two),
                live(NEW, 1, Stage::Available),
            ]
        };
        assert_eq!(
            plan(policy(2), &slots(Stage::Available, Stage::Available), &sets),
            [retire(1)]
        );
        assert_eq!(
            plan(policy(2), &slots(Stage::Unready, Stage::Available), &sets),
            [retire(0)]
        );
    }

    #[test]
    fn terminating_workers_count_as_live_until_they_are_gone() {
        let slots = [
            live(OLD, 0, Stage::Terminating),
            live(OLD, 1, Stage::Available),
            live(NEW, 0, Stage::Available),
            PARKED,
        ];
        let sets = [
            set(OLD, 1, &[Start::NotMissed; 2]),
            set(NEW, 2, &[Start::Now; 2]),
        ];
        assert_eq!(plan(policy(2), &slots, &sets), []);
    }

    #[test]
    fn with_stop_first_all_go_at_once_and_each_is_started_after_its_end() {
        let policy = Policy {
            stop_first: true,
            ..policy(2)
        };
        let sets = [
            set(OLD, 0, &[Start::NotMissed; 2]),
            set(NEW, 2, &[Start::Now; 2]),
        ];
        let slots = [
            live(OLD, 0, Stage::Available),
            live(OLD, 1, Stage::Available),
            PARKED,
        ];
        assert_eq!(plan(policy, &slots, &sets), [retire(0), retire(1)]);
        let slots = [PARKED, live(OLD, 1, Stage::Terminating), PARKED];
        assert_eq!(plan(policy, &slots, &sets), [started(0, 0)]);
    }

    #[test]
    fn a_worker_comes_back_to_its_last_slot() {
        let mut sets = [set(NEW, 1, &[Start::Now])];
        sets[0].instances[0].1.last_slot = Some(2);
        assert_eq!(plan(policy(1), &[PARKED; 3], &sets), [started(2, 0)]);
    }

    #[test]
    fn an_instance_in_backoff_counts_as_there() {
        let sets = [set(NEW, 1, &[Start::Later])];
        assert_eq!(plan(policy(1), &[PARKED; 2], &sets), []);
    }

    #[test]
    fn a_lost_worker_of_the_release_before_comes_back_first() {
        let sets = [
            set(OLD, 2, &[Start::NotMissed, Start::Now]),
            set(NEW, 2, &[Start::Now; 2]),
        ];
        let slots = [
            live(OLD, 0, Stage::Available),
            PARKED,
            live(NEW, 0, Stage::Pending),
        ];
        let back = Move::Start {
            slot: 1,
            revision: OLD,
            instance: 1,
        };
        assert_eq!(plan(policy(2), &slots, &sets), [back]);
    }

    #[test]
    fn a_draining_worker_is_put_back_before_another_is_started() {
        let sets = [set(NEW, 0, &[Start::NotMissed]), set(OLD, 1, &[Start::Now])];
        let slots = [live(OLD, 0, Stage::Draining), PARKED];
        assert_eq!(plan(policy(1), &slots, &sets), [Move::Return { slot: 0 }]);
        let slots = [live(OLD, 0, Stage::Terminating), PARKED];
        assert_eq!(
            plan(policy(1), &slots, &sets),
            [Move::Start {
                slot: 1,
                revision: OLD,
                instance: 0
            }]
        );
    }

    #[test]
    fn a_faulty_worker_goes_once_its_replacement_serves() {
        let sets = [set(NEW, 2, &[Start::Now; 2])];
        let slots = |stage| {
            [
                faulty(0, Stage::Available),
                live(NEW, 1, Stage::Available),
                live(NEW, 0, stage),
            ]
        };
        assert_eq!(plan(policy(2), &slots(Stage::Pending), &sets), []);
        assert_eq!(
            plan(policy(2), &slots(Stage::Available), &sets),
            [retire(0)]
        );
        let slots = [
            faulty(0, Stage::Available),
            live(NEW, 1, Stage::Available),
            PARKED,
        ];
        assert_eq!(plan(policy(2), &slots, &sets), [started(2, 0)]);
    }

    #[test]
    fn every_rollout_ends_within_its_bounds() {
        for (before, instances, surge) in
            (1..6).flat_map(|o| (1..6).flat_map(move |n| (1..4).map(move |s| (o, n, s))))
        {
            let most = instances.max(before);
            let policy = Policy {
                floor: most,
                ceiling: most + surge,
                stop_first: false,
            };
            let mut slots: Vec<SlotView> = (0..before)
                .map(|i| live(OLD, i, Stage::Available))
                .collect();
            slots.resize(usize::from(most + surge), PARKED);
            let count = |slots: &[SlotView], of: u64| {
                let serves = |s: &&SlotView| matches!(s, SlotView::Live { revision, stage: Stage::Available, .. } if *revision == of);
                slots.iter().filter(serves).count() as u16
            };
            for _ in 0..100 {
                let filled = count(&slots, NEW);
                let seen = Seen {
                    target: NEW,
                    instances,
                    filled,
                    occupied: filled,
                    most,
                    others: vec![Other {
                        revision: OLD,
                        able: before,
                        serving: before,
                    }],
                    listening: true,
                    leaving: false,
                };
                let sets: Vec<SetView> = rolling::desired(&seen)
                    .iter()
                    .map(
                        |Wish {
                             revision, replicas, ..
                         }| match *revision {
                            OLD => {
                                set(OLD, *replicas, &vec![Start::NotMissed; usize::from(before)])
                            }
                            new => set(new, *replicas, &vec![Start::Now; usize::from(instances)]),
                        },
                    )
                    .collect();
                for step in plan(policy, &slots, &sets) {
                    match step {
                        Move::Start {
                            slot,
                            revision,
                            instance,
                        } => slots[usize::from(slot)] = live(revision, instance, Stage::Pending),
                        Move::Retire { slot } => slots[usize::from(slot)] = PARKED,
                        Move::Return { .. } => unreachable!("nothing drains"),
                    }
                }
                let serving = count(&slots, OLD) + count(&slots, NEW);
                assert!(serving >= instances.min(before), "{slots:?}");
                let coming = slots.iter_mut().find(|s| {
                    matches!(
                        s,
                        SlotView::Live {
                            stage: Stage::Pending,
                            ..
                        }
                    )
                });
                if let Some(SlotView::Live { stage, .. }) = coming {
                    *stage = Stage::Available;
                }
            }
            assert_eq!(count(&slots, NEW), instances);
            assert_eq!(
                slots.iter().filter(|s| **s != PARKED).count(),
                usize::from(instances)
            );
        }
    }
}
