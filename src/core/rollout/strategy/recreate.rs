//! All workers stop, then those of the target start: connections wait meanwhile.

use super::{Desired, Seen, Wish};
use crate::core::weights::Share;

pub fn desired(seen: &Seen) -> Desired {
    let wish = |revision, replicas| Wish {
        revision,
        replicas,
        share: Share::PerWorker,
    };
    let others = seen.others.iter().map(|other| wish(other.revision, 0));
    others.chain([wish(seen.target, seen.instances)]).collect()
}
