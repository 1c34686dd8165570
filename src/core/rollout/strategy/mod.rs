//! How a rollout proceeds: the wanted workers of each release, given what is seen. A strategy
//! decides nothing else; [`super::plan`] turns its answer into moves within the bounds of surge and
//! availability.

pub mod recreate;
pub mod rolling;

use super::{Phase, Rollout};
use crate::core::view::OperationKind;
use crate::core::weights::Share;

/// The wanted workers of one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub revision: u64,
    pub replicas: u16,
    pub share: Share,
}

/// The wish for each release that has workers, or gets some.
pub type Desired = Vec<Wish>;

/// The next step of the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing until the next input.
    Wait,
    /// The next phase.
    Advance,
    Done,
}

/// What a strategy sees of an app.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The wanted release.
    pub target: u64,
    pub instances: u16,
    /// Instances of the target that are available, or have ended as their policy allows.
    pub filled: u16,
    /// As `filled`, plus those that are ready but not for long enough, or unready now.
    pub occupied: u16,
    /// The most workers wanted of all releases together, before or after.
    pub most: u16,
    /// Every other release that has a set, in the order in which they keep their workers.
    pub others: Vec<Other>,
    /// Whether the wanted sockets are open.
    pub listening: bool,
    /// Whether a worker that was leaving when the rollout finished is still there; during a
    /// rollback, one of another release than the target.
    pub leaving: bool,
}

/// A release other than the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    pub revision: u64,
    /// Workers that it may keep.
    pub able: u16,
    /// The number of these that serve.
    pub serving: u16,
}

/// Calls the strategy of the rollout.
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
            if seen.listening && !seen.leaving && seen.occupied >= seen.instances =>
        {
            Verdict::Done
        }
        Phase::Progress { .. } | Phase::Finish { .. } | Phase::RollBack { .. } => Verdict::Wait,
    }
}
