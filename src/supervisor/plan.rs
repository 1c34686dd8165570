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
    Live { instance: u16, fresh: bool, stage: Stage },
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
    slots.contains(&SlotView::Live { instance, fresh: true, stage: Stage::Serving })
}

fn retire(policy: Policy, slots: &[SlotView], seats: &[SeatView], moves: &mut Vec<Move>) {
    let available = slots.iter().filter(|s| matches!(s, SlotView::Live { fresh: true, stage: Stage::Serving, .. })).count();
    let ended = seats.iter().filter(|s| s.ended).count();
    let over = policy.stop_first || available + ended >= usize::from(policy.instances);
    // Those that count as serving, the least missed first.
    let mut serving = Vec::new();
    for (slot, view) in (0u16..).zip(slots) {
        let SlotView::Live { instance, fresh: false, stage } = view else { continue };
        let covered = over || *instance >= policy.instances || replaced(slots, *instance);
        match stage {
            Stage::Leaving => {}
            Stage::Coming => moves.push(Move::Retire { slot }),
            Stage::Returning if covered => moves.push(Move::Retire { slot }),
            Stage::Returning => {}
            Stage::Serving | Stage::Limping => serving.push((*stage == Stage::Serving, !covered, slot)),
        }
    }
    serving.sort_unstable();
    let spare = (available + serving.len()).saturating_sub(usize::from(policy.floor));
    let go = if over { serving.len() } else { spare.min(serving.len()) };
    moves.extend(serving.iter().take(go).map(|(.., slot)| Move::Retire { slot: *slot }));
}

fn start(policy: Policy, slots: &[SlotView], seats: &[SeatView], moves: &mut Vec<Move>) {
    let live = slots.iter().filter(|s| matches!(s, SlotView::Live { .. })).count();
    let mut room = usize::from(policy.ceiling).saturating_sub(live);
    let mut parked: Vec<u16> = (0u16..).zip(slots).filter(|(_, view)| **view == SlotView::Parked).map(|(slot, _)| slot).collect();
    let mut take = |seat: &SeatView| {
        if room == 0 || parked.is_empty() {
            return None;
        }
        room -= 1;
        let at = parked.iter().position(|slot| seat.last_slot == Some(*slot)).unwrap_or(0);
        Some(parked.remove(at))
    };
    let seats = || (0u16..).zip(seats).take(usize::from(policy.instances));
    for (instance, seat) in seats().filter(|(instance, seat)| seat.bereft && !replaced(slots, *instance)) {
        let Some(slot) = take(seat) else { return };
        moves.push(Move::Restore { slot, instance });
    }
    let held = |instance: u16| {
        slots.iter().any(|view| match view {
            SlotView::Live { instance: i, fresh, .. } => *i == instance && (*fresh || policy.stop_first),
            SlotView::Parked => false,
        })
    };
    for (instance, seat) in seats().filter(|(instance, seat)| seat.open && !held(*instance)) {
        let Some(slot) = take(seat) else { return };
        moves.push(Move::Start { slot, instance });
    }
}
