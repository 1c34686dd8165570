//! Actions that were begun, by their clients' ids: a client that lost the daemon before it had an
//! answer asks the next one, and nothing is done twice.
//!
//! An action is saved together with the core's state in which it is under way, and before its first
//! effect.

use std::collections::{HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::config::AppName;
use crate::control::{ActionId, Failure, Untouched};
use crate::core::{OpId, OperationKind};
use crate::model::ActionError;

/// How many actions are remembered after their end, and how many apps they may have altogether, not
/// counting the latest action: the state must not grow with them.
const MOST: usize = 64;
const MOST_PARTS: usize = 512;

/// How the latest actions on single apps ended.
pub type Results = VecDeque<(OpId, Result<(), ActionError>)>;

/// An action, and what it began for each app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    pub id: ActionId,
    /// The daemon ends after it.
    #[serde(default)]
    pub kill: bool,
    pub parts: Vec<Part>,
}

/// What an action began for one app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub app: AppName,
    pub kind: OperationKind,
    pub how: How,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The core's id of the action.
    Op(OpId),
    Untouched(Untouched),
    Refused(Failure),
}

impl Begun {
    fn ops(&self) -> impl Iterator<Item = OpId> {
        self.parts.iter().filter_map(|part| match part.how {
            How::Op(op) => Some(op),
            How::Untouched(_) | How::Refused(_) => None,
        })
    }
}

/// When [`forget_surplus`] is worth its while: it looks at all that is remembered, and the end of each of
/// a thousand parts must not.
#[derive(Debug, Default)]
pub struct Surplus {
    /// How much there was after the last time.
    left: usize,
}

impl Surplus {
    pub fn forget(&mut self, actions: &mut VecDeque<Begun>, results: &mut Results) {
        let all = |actions: &VecDeque<Begun>, results: &Results| {
            let parts: usize = actions.iter().map(|begun| begun.parts.len()).sum();
            actions.len() + parts + results.len()
        };
        if all(actions, results) > self.left + self.left / 4 {
            forget_surplus(actions, results);
            self.left = all(actions, results);
        }
    }
}

/// Forgets the oldest finished actions, and results that belong to no remembered action, except for
/// the latest.
fn forget_surplus(actions: &mut VecDeque<Begun>, results: &mut Results) {
    if too_many(actions) {
        let over: HashSet<OpId> = results.iter().map(|(op, _)| *op).collect();
        let (mut count, mut parts) = (0, 0);
        let mut kept = VecDeque::new();
        for begun in actions.drain(..).rev() {
            let is_over = begun.ops().all(|op| over.contains(&op));
            count += 1;
            parts += begun.parts.len();
            if !is_over || count == 1 || (count <= MOST && parts <= MOST_PARTS) {
                kept.push_front(begun);
            }
        }
        *actions = kept;
    }
    let mut surplus = results.len().saturating_sub(MOST);
    if surplus > 0 {
        let kept: HashSet<OpId> = actions.iter().flat_map(Begun::ops).collect();
        results.retain(|(op, _)| {
            let goes = surplus > 0 && !kept.contains(op);
            surplus -= usize::from(goes);
            !goes
        });
    }
}

fn too_many(actions: &VecDeque<Begun>) -> bool {
    let parts: usize = actions.iter().map(|begun| begun.parts.len()).sum();
    actions.len() > MOST || parts > MOST_PARTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(id: u64, ops: std::ops::Range<u64>) -> Begun {
        let part = |op| Part {
            app: AppName::new("web"),
            kind: OperationKind::Reload,
            how: How::Op(OpId(op)),
        };
        Begun {
            id: ActionId(id),
            kill: false,
            parts: ops.map(part).collect(),
        }
    }

    #[test]
    fn an_action_of_many_apps_keeps_all_its_results() {
        let mut actions: VecDeque<Begun> = [begun(0, 0..500)].into();
        let mut results: Results = (0..500).map(|op| (OpId(op), Ok(()))).collect();
        forget_surplus(&mut actions, &mut results);
        assert_eq!((actions.len(), results.len()), (1, 500));
        for n in 0..200 {
            actions.push_back(begun(n + 1, 500 + n..501 + n));
            results.push_back((OpId(500 + n), Ok(())));
            forget_surplus(&mut actions, &mut results);
        }
        assert_eq!((actions.len(), results.len()), (MOST, MOST));
        assert_eq!(actions[0].id, ActionId(137));
        for n in 0..3 {
            let ops = 10_000 + n * 1000..11_000 + n * 1000;
            actions.push_back(begun(1000 + n, ops.clone()));
            results.extend(ops.map(|op| (OpId(op), Ok(()))));
            forget_surplus(&mut actions, &mut results);
            assert_eq!((actions.len(), results.len()), (1, 1000));
        }
    }

    #[test]
    fn the_ends_of_many_parts_are_looked_through_few_times_and_stay_bounded() {
        let mut surplus = Surplus::default();
        let mut actions: VecDeque<Begun> = [begun(0, 0..4000)].into();
        let mut results = Results::new();
        for op in 0..4000 {
            results.push_back((OpId(op), Ok(())));
            surplus.forget(&mut actions, &mut results);
        }
        assert_eq!((actions.len(), results.len()), (1, 4000));
        for n in 0..5000 {
            actions.push_back(begun(n + 1, 4000 + n..4001 + n));
            results.push_back((OpId(4000 + n), Ok(())));
            surplus.forget(&mut actions, &mut results);
        }
        assert!(actions.len() <= 2 * MOST, "{}", actions.len());
        assert!(results.len() <= 2 * MOST, "{}", results.len());
    }

    #[test]
    fn what_is_under_way_is_never_forgotten() {
        let mut actions: VecDeque<Begun> = (0..200).map(|n| begun(n, n..n + 1)).collect();
        let mut results = Results::new();
        forget_surplus(&mut actions, &mut results);
        assert_eq!(actions.len(), 200);
    }
}
