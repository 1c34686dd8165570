//! Worker by worker: the other releases lose one for each additional available worker of the
//! target.

use super::{Desired, Seen, Wish};
use crate::core::weights::Share;

pub fn desired(seen: &Seen) -> Desired {
    let mut rest = if seen.filled >= seen.instances {
        0
    } else {
        seen.most - seen.filled.min(seen.most)
    };
    let mut take = |wanted: u16| {
        let taken = wanted.min(rest);
        rest -= taken;
        taken
    };
    // A serving worker of one release is not given up for one of another that does not serve.
    let serving: Vec<u16> = seen.others.iter().map(|o| take(o.serving)).collect();
    let mut desired = Desired::new();
    for (other, serving) in seen.others.iter().zip(serving) {
        desired.push(Wish {
            revision: other.revision,
            replicas: serving + take(other.able.saturating_sub(other.serving)),
            share: Share::PerWorker,
        });
    }
    desired.push(Wish {
        revision: seen.target,
        replicas: seen.instances,
        share: Share::PerWorker,
    });
    desired
}

#[cfg(test)]
mod tests {
    use super::super::Other;
    use super::*;

    fn replicas(instances: u16, most: u16, filled: u16, able: &[u16]) -> Vec<u16> {
        let seen = Seen {
            target: 9,
            instances,
            filled,
            occupied: filled,
            most,
            others: (1u64..)
                .zip(able)
                .map(|(revision, able)| Other {
                    revision,
                    able: *able,
                    serving: *able,
                })
                .collect(),
            listening: true,
            leaving: false,
        };
        desired(&seen).iter().map(|wish| wish.replicas).collect()
    }

    #[test]
    fn a_worker_goes_for_each_that_came() {
        assert_eq!(replicas(3, 3, 0, &[3]), [3, 3]);
        assert_eq!(replicas(3, 3, 1, &[3]), [2, 3]);
        assert_eq!(replicas(3, 3, 3, &[3]), [0, 3]);
    }

    #[test]
    fn growing_and_shrinking_keep_the_larger_number_until_the_end() {
        assert_eq!(replicas(5, 5, 2, &[2]), [2, 5]);
        assert_eq!(replicas(5, 5, 4, &[2]), [1, 5]);
        assert_eq!(replicas(1, 5, 0, &[5]), [5, 1]);
        assert_eq!(replicas(1, 5, 1, &[5]), [0, 1]);
    }

    #[test]
    fn several_releases_share_what_is_left() {
        assert_eq!(replicas(4, 4, 1, &[2, 2]), [2, 1, 4]);
        let other = |revision, serving| Other {
            revision,
            able: 2,
            serving,
        };
        let seen = Seen {
            target: 9,
            instances: 4,
            filled: 1,
            occupied: 1,
            most: 4,
            others: vec![other(1, 1), other(2, 2)],
            listening: true,
            leaving: false,
        };
        let replicas: Vec<u16> = desired(&seen).iter().map(|wish| wish.replicas).collect();
        assert_eq!(
            replicas,
            [1, 2, 4],
            "an unready worker goes before one that serves"
        );
    }
}
