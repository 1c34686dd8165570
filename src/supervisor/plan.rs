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
    /// Takes traffic and counts as available.
    Serving,
    /// Being drained or stopped.
    Leaving,
}

/// What a seat (a wanted worker, by instance number) allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatView {
    /// False while it waits in backoff or has been given up.
    pub open: bool,
    /// Where its last worker was.
    pub last_slot: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Start a fresh worker for the instance in this parked slot.
    Start { slot: u16, instance: u16 },
    /// Take the worker out of the traffic, drain and stop it.
    Retire { slot: u16 },
}

/// The moves that are possible now; none are left once they have been made.
pub fn plan(policy: Policy, slots: &[SlotView], seats: &[SeatView]) -> Vec<Move> {
    let mut moves = Vec::new();
    retire(policy, slots, &mut moves);
    start(policy, slots, seats, &mut moves);
    moves
}

fn retire(policy: Policy, slots: &[SlotView], moves: &mut Vec<Move>) {
    let serving = |wanted_fresh| {
        slots.iter().filter(|s| matches!(s, SlotView::Live { fresh, stage: Stage::Serving, .. } if *fresh == wanted_fresh)).count()
    };
    let available = serving(true);
    let complete = available >= usize::from(policy.instances);
    let mut total = available + serving(false);
    for (slot, view) in slots.iter().enumerate() {
        let SlotView::Live { fresh: false, stage, .. } = view else { continue };
        let goes = match stage {
            Stage::Leaving => false,
            Stage::Coming => true,
            Stage::Serving => policy.stop_first || complete || total > usize::from(policy.floor),
        };
        if goes {
            if *stage == Stage::Serving {
                total -= 1;
            }
            moves.push(Move::Retire { slot: slot as u16 });
        }
    }
}

fn start(policy: Policy, slots: &[SlotView], seats: &[SeatView], moves: &mut Vec<Move>) {
    let mut live = slots.iter().filter(|s| matches!(s, SlotView::Live { .. })).count();
    let mut parked: Vec<u16> = (0..slots.len() as u16).filter(|s| slots[usize::from(*s)] == SlotView::Parked).collect();
    for (instance, seat) in seats.iter().enumerate().take(usize::from(policy.instances)) {
        let instance = instance as u16;
        let held = slots.iter().any(|s| match s {
            SlotView::Live { instance: i, fresh, .. } => *i == instance && (*fresh || policy.stop_first),
            SlotView::Parked => false,
        });
        if !seat.open || held || live >= usize::from(policy.ceiling) {
            continue;
        }
        let Some(at) = parked.iter().position(|s| seat.last_slot == Some(*s)).or((!parked.is_empty()).then_some(0)) else { return };
        moves.push(Move::Start { slot: parked.remove(at), instance });
        live += 1;
    }
}
