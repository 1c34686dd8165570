//! How a rollout goes: what each release is to have next, given what is seen. A strategy decides nothing else;
//! [`super::plan`] turns its answer into moves within the bounds of surge and availability.

pub mod recreate;
pub mod rolling;

use super::{Phase, Rollout};
use crate::core::view::OperationKind;
use crate::core::weights::Share;

/// What is wanted of one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub revision: u64,
    pub replicas: u16,
    pub share: Share,
}

/// What is wanted of each release that has workers, or is to have some.
pub type Desired = Vec<Wish>;

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on when something happens.
    Wait,
    /// To the next phase.
    Advance,
    Done,
}

/// What a strategy sees of an app.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The release that is wanted.
    pub target: u64,
    pub instances: u16,
    /// Instances of the target that are available, or have ended as their policy has it.
    pub filled: u16,
    /// The same, with those that are ready and have not been for long, or are unready now.
    pub manned: u16,
    /// The most workers that are wanted of all releases together, before or after.
    pub most: u16,
    /// Every other release that has a set, in the order in which it is to keep its workers.
    pub others: Vec<Other>,
    /// Whether the wanted sockets are there.
    pub listening: bool,
    /// Whether a worker that was leaving when the rollout finished is still there; on the way back, one of
    /// another release than the target.
    pub leaving: bool,
}

/// A release that is not, or no more, the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    pub revision: u64,
    /// Workers that it may keep.
    pub able: u16,
    /// How many of these serve.
    pub serving: u16,
}

/// Asks the strategy of the rollout.
pub fn next(rollout: &Rollout, seen: &Seen) -> (Desired, Verdict) {
    let desired = match (rollout.kind, &rollout.phase) {
        (OperationKind::Restart, Phase::Progress { .. } | Phase::Finish { .. }) => {
            recreate::desired(seen)
        }
        (
            OperationKind::Start
            | OperationKind::Stop
            | OperationKind::Restart
            | OperationKind::Reload
            | OperationKind::Scale
            | OperationKind::Delete,
            Phase::Progress { .. } | Phase::Finish { .. } | Phase::RollBack { .. },
        ) => rolling::desired(seen),
    };
    (desired, verdict(&rollout.phase, seen))
}

fn verdict(phase: &Phase, seen: &Seen) -> Verdict {
    match phase {
        Phase::Progress { .. } if seen.listening && seen.filled >= seen.instances => {
            Verdict::Advance
        }
        Phase::Finish { .. } if seen.listening && !seen.leaving => Verdict::Done,
        Phase::RollBack { .. }
            if seen.listening && !seen.leaving && seen.manned >= seen.instances =>
        {
            Verdict::Done
        }
        Phase::Progress { .. } | Phase::Finish { .. } | Phase::RollBack { .. } => Verdict::Wait,
    }
}
