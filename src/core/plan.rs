//! The replacement planner: a pure function from a policy and a view of the slots to the next moves.
//!
//! Start, scale, reload, and the replacement of a worker that leaks or hangs are all the same plan:
//! workers are *fresh* (to stay) or *condemned* (to go), and a condemned one goes once a fresh one
//! can take its place.

/// The bounds of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Wanted fresh workers.
    pub instances: u16,
    /// Serving workers, fresh or condemned, that the plan itself never goes below while
    /// fewer than `instances` fresh workers are available.
    pub floor: u16,
    /// Live workers of any kind that the plan never goes above.
    pub ceiling: u16,
    /// A fresh worker starts only after the condemned one of the same instance is gone.
    pub stop_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotView {
    /// No process: the slot can be used.
    Parked,
    Live {
        instance: u16,
        fresh: bool,
        stage: Stage,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not ready yet (or not any more, or not for long enough).
    Coming,
    /// An old worker on its way up while its replacement is tried: it goes once that one serves.
    Returning,
    /// Takes traffic and counts as available.
    Serving,
    /// An old worker that was ready and is not now. It counts as serving, since its kind may be all
    /// there is, but goes before those that do serve.
    Limping,
    /// Being drained or stopped.
    Leaving,
}

/// What a seat (a wanted worker, by instance number) allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatView {
    /// False while it waits in backoff or has been given up.
    pub open: bool,
    /// Its worker has ended and is not to be started again: nothing is missing there.
    pub ended: bool,
    /// Its workers failed too often: a new one is not to be waited for.
    pub given_up: bool,
    /// An old worker of it ended by itself while its replacement is tried: it may come back.
    pub bereft: bool,
    /// Where its last worker was.
    pub last_slot: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Start a fresh worker for the instance in this parked slot.
    Start { slot: u16, instance: u16 },
    /// Start an old worker of the instance once more.
    Restore { slot: u16, instance: u16 },
    /// Take the worker out of the traffic, drain and stop it.
    Retire { slot: u16 },
}

/// The moves that are possible now.
pub fn plan(policy: Policy, slots: &[SlotView], seats: &[SeatView]) -> Vec<Move> {
    let mut moves = Vec::new();
    retire(policy, slots, seats, &mut moves);
    start(policy, slots, seats, &mut moves);
    moves
}

/// Whether a fresh worker of the instance serves.
fn replaced(slots: &[SlotView], instance: u16) -> bool {
    slots.contains(&SlotView::Live {
        instance,
        fresh: true,
        stage: Stage::Serving,
    })
}

fn retire(policy: Policy, slots: &[SlotView], seats: &[SeatView], moves: &mut Vec<Move>) {
    let available = slots
        .iter()
        .filter(|s| {
            matches!(
                s,
                SlotView::Live {
                    fresh: true,
                    stage: Stage::Serving,
                    ..
                }
            )
        })
        .count();
    let count = |holds: fn(&SeatView) -> bool| seats.iter().filter(|s| holds(s)).count();
    let filled = available + count(|s| s.ended);
    let wanted = usize::from(policy.instances);
    let over = policy.stop_first || filled >= wanted;
    let nobody_comes = filled + count(|s| s.given_up) >= wanted;
    // Those that count as serving, the least missed first.
    let mut serving = Vec::new();
    for (slot, view) in (0u16..).zip(slots) {
        let SlotView::Live {
            instance,
            fresh: false,
            stage,
        } = view
        else {
            continue;
        };
        let covered = over || *instance >= policy.instances || replaced(slots, *instance);
        match stage {
            Stage::Leaving => {}
            Stage::Coming => moves.push(Move::Retire { slot }),
            Stage::Returning if covered => moves.push(Move::Retire { slot }),
            Stage::Returning => {}
            Stage::Serving | Stage::Limping => {
                serving.push((*stage == Stage::Serving, !covered, slot))
            }
        }
    }
    serving.sort_unstable();
    let spare = (available + serving.len()).saturating_sub(usize::from(policy.floor));
    let goes = |(i, (_, uncovered, _)): &(usize, &(bool, bool, u16))| {
        over || *i < spare || (nobody_comes && !uncovered)
    };
    moves.extend(
        serving
            .iter()
            .enumerate()
            .filter(goes)
            .map(|(_, (.., slot))| Move::Retire { slot: *slot }),
    );
}

fn start(policy: Policy, slots: &[SlotView], seats: &[SeatView], moves: &mut Vec<Move>) {
    let live = slots
        .iter()
        .filter(|s| matches!(s, SlotView::Live { .. }))
        .count();
    let mut room = usize::from(policy.ceiling).saturating_sub(live);
    let mut parked: Vec<u16> = (0u16..)
        .zip(slots)
        .filter(|(_, view)| **view == SlotView::Parked)
        .map(|(slot, _)| slot)
        .collect();
    let mut take = |seat: &SeatView| {
        if room == 0 || parked.is_empty() {
            return None;
        }
        room -= 1;
        let at = parked
            .iter()
            .position(|slot| seat.last_slot == Some(*slot))
            .unwrap_or(0);
        Some(parked.remove(at))
    };
    let seats = || (0u16..).zip(seats).take(usize::from(policy.instances));
    for (instance, seat) in
        seats().filter(|(instance, seat)| seat.bereft && !replaced(slots, *instance))
    {
        let Some(slot) = take(seat) else { return };
        moves.push(Move::Restore { slot, instance });
    }
    let held = |instance: u16| {
        slots.iter().any(|view| match view {
            SlotView::Live {
                instance: i, fresh, ..
            } => *i == instance && (*fresh || policy.stop_first),
            SlotView::Parked => false,
        })
    };
    for (instance, seat) in seats().filter(|(instance, seat)| seat.open && !held(*instance)) {
        let Some(slot) = take(seat) else { return };
        moves.push(Move::Start { slot, instance });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARKED: SlotView = SlotView::Parked;

    fn old(instance: u16, stage: Stage) -> SlotView {
        SlotView::Live {
            instance,
            fresh: false,
            stage,
        }
    }

    fn fresh(instance: u16, stage: Stage) -> SlotView {
        SlotView::Live {
            instance,
            fresh: true,
            stage,
        }
    }

    fn rolling(instances: u16) -> Policy {
        Policy {
            instances,
            floor: instances,
            ceiling: instances + 1,
            stop_first: false,
        }
    }

    fn open() -> SeatView {
        SeatView {
            open: true,
            ended: false,
            given_up: false,
            bereft: false,
            last_slot: None,
        }
    }

    fn shut() -> SeatView {
        SeatView {
            open: false,
            ..open()
        }
    }

    #[test]
    fn a_replacement_starts_in_the_spare_slot_and_nobody_goes() {
        let slots = [old(0, Stage::Serving), old(1, Stage::Serving), PARKED];
        assert_eq!(
            plan(rolling(2), &slots, &[open(), open()]),
            [Move::Start {
                slot: 2,
                instance: 0
            }]
        );
    }

    #[test]
    fn the_old_worker_goes_once_its_replacement_serves() {
        let slots = |stage| {
            [
                old(0, Stage::Serving),
                old(1, Stage::Serving),
                fresh(1, stage),
            ]
        };
        assert_eq!(
            plan(rolling(2), &slots(Stage::Coming), &[open(), open()]),
            []
        );
        assert_eq!(
            plan(rolling(2), &slots(Stage::Serving), &[open(), open()]),
            [Move::Retire { slot: 1 }]
        );
    }

    #[test]
    fn a_limping_worker_goes_before_a_serving_one() {
        let slots = [
            old(0, Stage::Serving),
            old(1, Stage::Limping),
            fresh(0, Stage::Serving),
        ];
        assert_eq!(
            plan(rolling(2), &slots, &[open(), open()]),
            [Move::Retire { slot: 1 }]
        );
    }

    #[test]
    fn leaving_workers_count_as_live_until_they_are_gone() {
        let slots = [
            old(0, Stage::Leaving),
            old(1, Stage::Serving),
            fresh(0, Stage::Serving),
            PARKED,
        ];
        assert_eq!(plan(rolling(2), &slots, &[open(), open()]), []);
    }

    #[test]
    fn with_stop_first_all_go_at_once_and_each_is_started_after_its_end() {
        let policy = Policy {
            stop_first: true,
            ..rolling(2)
        };
        let retired = plan(
            policy,
            &[old(0, Stage::Serving), old(1, Stage::Serving), PARKED],
            &[open(), open()],
        );
        assert_eq!(
            retired,
            [Move::Retire { slot: 0 }, Move::Retire { slot: 1 }]
        );
        let started = plan(
            policy,
            &[PARKED, old(1, Stage::Leaving), PARKED],
            &[open(), open()],
        );
        assert_eq!(
            started,
            [Move::Start {
                slot: 0,
                instance: 0
            }]
        );
    }

    #[test]
    fn a_worker_comes_back_to_its_last_slot() {
        let seat = SeatView {
            last_slot: Some(2),
            ..open()
        };
        assert_eq!(
            plan(rolling(1), &[PARKED, PARKED, PARKED], &[seat]),
            [Move::Start {
                slot: 2,
                instance: 0
            }]
        );
    }

    #[test]
    fn a_seat_in_backoff_is_not_filled() {
        assert_eq!(plan(rolling(1), &[PARKED, PARKED], &[shut()]), []);
    }

    #[test]
    fn a_bereft_seat_is_restored_before_anything_is_started() {
        let seats = [
            open(),
            SeatView {
                bereft: true,
                last_slot: Some(1),
                ..open()
            },
        ];
        let slots = [old(0, Stage::Serving), PARKED, fresh(0, Stage::Coming)];
        assert_eq!(
            plan(rolling(2), &slots, &seats),
            [Move::Restore {
                slot: 1,
                instance: 1
            }]
        );
        let returning = [
            old(0, Stage::Serving),
            old(1, Stage::Returning),
            fresh(1, Stage::Serving),
        ];
        assert_eq!(
            plan(rolling(2), &returning, &[open(), open()]),
            [Move::Retire { slot: 1 }]
        );
    }

    #[test]
    fn when_the_rest_is_given_up_a_replaced_worker_still_goes() {
        let slots = [old(0, Stage::Serving), fresh(0, Stage::Serving), PARKED];
        let given_up = SeatView {
            given_up: true,
            ..shut()
        };
        assert_eq!(plan(rolling(2), &slots, &[open(), shut()]), []);
        assert_eq!(
            plan(rolling(2), &slots, &[open(), given_up]),
            [Move::Retire { slot: 0 }]
        );
    }

    #[test]
    fn every_rollout_ends_within_its_bounds() {
        for (old_instances, instances, surge) in
            (1..6).flat_map(|o| (1..6).flat_map(move |n| (1..4).map(move |s| (o, n, s))))
        {
            let most = instances.max(old_instances);
            let policy = Policy {
                instances,
                floor: most,
                ceiling: most + surge,
                stop_first: false,
            };
            let mut slots: Vec<SlotView> =
                (0..old_instances).map(|i| old(i, Stage::Serving)).collect();
            slots.resize(usize::from(most + surge), PARKED);
            let seats = vec![open(); usize::from(instances)];
            for _ in 0..100 {
                for step in plan(policy, &slots, &seats) {
                    match step {
                        Move::Start { slot, instance } => {
                            slots[usize::from(slot)] = fresh(instance, Stage::Coming)
                        }
                        Move::Retire { slot } => slots[usize::from(slot)] = PARKED,
                        Move::Restore { .. } => unreachable!("nobody was lost"),
                    }
                }
                let serving = slots
                    .iter()
                    .filter(|s| {
                        matches!(
                            s,
                            SlotView::Live {
                                stage: Stage::Serving,
                                ..
                            }
                        )
                    })
                    .count();
                assert!(
                    serving >= usize::from(instances.min(old_instances)),
                    "{slots:?}"
                );
                let coming = slots.iter_mut().find(|s| {
                    matches!(
                        s,
                        SlotView::Live {
                            stage: Stage::Coming,
                            ..
                        }
                    )
                });
                if let Some(SlotView::Live { stage, .. }) = coming {
                    *stage = Stage::Serving;
                }
            }
            let done: Vec<&SlotView> = slots.iter().filter(|s| **s != PARKED).collect();
            assert_eq!(done.len(), usize::from(instances));
            assert!(done.iter().all(|s| matches!(
                s,
                SlotView::Live {
                    fresh: true,
                    stage: Stage::Serving,
                    ..
                }
            )));
        }
    }
}
