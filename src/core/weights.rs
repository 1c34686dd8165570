//! Steering weights: exact integers for any shares of any numbers of workers.

use serde::{Deserialize, Serialize};

/// The part of new connections that a release gets. It is split evenly among its ready workers; a
/// release without one leaves its part to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// In proportion to its ready workers: every worker of all such releases gets the same.
    #[default]
    PerWorker,
    /// This many parts of the sum of all parts.
    Parts(u32),
}

/// The workers of one release that take connections, by slot.
pub struct Takers {
    pub share: Share,
    pub slots: Vec<u16>,
}

/// The weights of `slots` slots, in lowest terms.
pub fn weights(sets: &[Takers], slots: usize) -> Vec<u32> {
    let sets: Vec<(u128, &[u16])> = sets
        .iter()
        .filter(|set| !set.slots.is_empty())
        .map(|set| {
            let parts = match set.share {
                Share::PerWorker => set.slots.len() as u128,
                Share::Parts(parts) => u128::from(parts),
            };
            (parts, set.slots.as_slice())
        })
        .collect();
    // A worker gets parts / workers of its release: with a common multiple of all numbers of workers
    // that is an integer.
    let common = sets
        .iter()
        .fold(1, |common, (_, slots)| lcm(common, slots.len() as u128));
    let each: Vec<u128> = sets
        .iter()
        .map(|(parts, slots)| parts * (common / slots.len() as u128))
        .collect();
    let divisor = each.iter().copied().fold(0, gcd).max(1);
    // Larger ratios than a weight can hold are approximated; a release with a share never gets
    // zero.
    let largest = each.iter().copied().max().unwrap_or(0) / divisor;
    let shrink = largest.div_ceil(u128::from(u32::MAX)).max(1);
    let mut weights = vec![0; slots];
    for ((_, slots), each) in sets.iter().zip(&each) {
        let weight = (each / divisor / shrink).max(u128::from(*each > 0));
        for slot in *slots {
            if let Some(place) = weights.get_mut(usize::from(*slot)) {
                *place = u32::try_from(weight).unwrap_or(u32::MAX);
            }
        }
    }
    weights
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u128, b: u128) -> u128 {
    a / gcd(a, b) * b
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn takers(share: Share, slots: impl IntoIterator<Item = u16>) -> Takers {
        Takers {
            share,
            slots: slots.into_iter().collect(),
        }
    }

    #[test]
    fn workers_alike_weigh_one_each() {
        let sets = [
            takers(Share::PerWorker, [0, 2]),
            takers(Share::PerWorker, [3]),
        ];
        assert_eq!(weights(&sets, 5), [1, 0, 1, 1, 0]);
        assert_eq!(weights(&[], 2), [0, 0]);
    }

    #[test]
    fn five_percent_are_five_percent_with_any_number_of_workers() {
        let sets = [
            takers(Share::Parts(95), 0..3),
            takers(Share::Parts(5), 3..5),
        ];
        // 95/3 to 5/2 is 190 to 15, so 38 to 3.
        assert_eq!(weights(&sets, 5), [38, 38, 38, 3, 3]);
        let nothing = [takers(Share::Parts(1), 0..2), takers(Share::Parts(0), 2..3)];
        assert_eq!(weights(&nothing, 3), [1, 1, 0]);
        let alone = [takers(Share::Parts(95), []), takers(Share::Parts(5), 0..2)];
        assert_eq!(
            weights(&alone, 2),
            [1, 1],
            "a share without workers goes to the others"
        );
    }

    proptest! {
        #[test]
        fn shares_are_exact(sets in prop::collection::vec((0u32..1000, 1u16..40), 1..4)) {
            let mut next = 0;
            let takers: Vec<Takers> = sets.iter().map(|(parts, n)| {
                next += n;
                takers(Share::Parts(*parts), next - n..next)
            }).collect();
            let weights = weights(&takers, usize::from(next));
            let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            let parts: u128 = sets.iter().map(|(parts, _)| u128::from(*parts)).sum();
            for ((share, _), set) in sets.iter().zip(&takers) {
                let weight: u128 = set.slots.iter().map(|s| u128::from(weights[usize::from(*s)])).sum();
                prop_assert_eq!(weight * parts, total * u128::from(*share));
            }
        }
    }
}
