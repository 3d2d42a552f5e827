//! Who shares what: the bytes that an owner holds alone, and those that others need too. Pure.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// What an owner takes on the disk. The template's base layer is not in it: it is there in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Freed when this one is deleted.
    pub exclusive_bytes: u64,
    /// Needed by others too.
    pub shared_bytes: u64,
}

/// Files and what they lie on; `N` names a file, `O` an owner.
#[derive(Clone, Debug)]
pub(crate) struct Graph<N, O> {
    /// Bytes on the disk, and the file it lies on.
    pub(crate) files: HashMap<N, (u64, Option<N>)>,
    /// The files that an owner holds at first hand.
    pub(crate) owners: Vec<(O, Vec<N>)>,
}

impl<N: Clone + Eq + std::hash::Hash, O: Clone + Eq + std::hash::Hash> Graph<N, O> {
    /// The share of every owner.
    pub(crate) fn shares(&self) -> HashMap<O, Share> {
        let held: Vec<(&O, HashSet<&N>)> = self.owners.iter().map(|(owner, first)| (owner, self.held(first))).collect();
        let mut holders: HashMap<&N, usize> = HashMap::new();
        for file in held.iter().flat_map(|(_, files)| files) {
            *holders.entry(file).or_default() += 1;
        }
        let share = |files: &HashSet<&N>| {
            files.iter().fold(Share::default(), |mut share, file| {
                let bytes = self.files.get(*file).map_or(0, |(bytes, _)| *bytes);
                match holders.get(*file) {
                    Some(1) => share.exclusive_bytes += bytes,
                    _ => share.shared_bytes += bytes,
                }
                share
            })
        };
        held.iter().map(|(owner, files)| ((*owner).clone(), share(files))).collect()
    }

    /// The bytes of all files that anyone needs, each counted once.
    pub(crate) fn needed_bytes(&self) -> u64 {
        let all: HashSet<&N> = self.owners.iter().flat_map(|(_, first)| self.held(first)).collect();
        all.into_iter().map(|file| self.files.get(file).map_or(0, |(bytes, _)| *bytes)).sum()
    }

    /// All files that `first` need, themselves among them.
    fn held<'a>(&'a self, first: &'a [N]) -> HashSet<&'a N> {
        let mut held = HashSet::new();
        for file in first {
            let mut next = Some(file);
            // A set, so that even a damaged graph with a circle has an end.
            while let Some(file) = next.filter(|file| held.insert(*file)) {
                next = self.files.get(file).and_then(|(_, below)| below.as_ref());
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_two_need_is_shared_and_what_one_needs_is_its_own() {
        let files = HashMap::from([(1, (100, None)), (2, (10, Some(1))), (3, (1, Some(1))), (4, (1000, Some(2)))]);
        let owners = vec![("sandbox", vec![2]), ("fork", vec![3]), ("snapshot", vec![2, 4]), ("nothing", vec![])];
        let shares = Graph { files, owners }.shares();
        assert_eq!(shares["sandbox"], Share { exclusive_bytes: 0, shared_bytes: 110 });
        assert_eq!(shares["fork"], Share { exclusive_bytes: 1, shared_bytes: 100 });
        assert_eq!(shares["snapshot"], Share { exclusive_bytes: 1000, shared_bytes: 110 });
        assert_eq!(shares["nothing"], Share::default());
    }

    proptest! {
        /// Deleting an owner frees exactly what its share calls exclusive.
        #[test]
        fn exclusive_is_what_a_delete_frees(
            parents in proptest::collection::vec(proptest::option::of(0..20usize), 1..20),
            owners in proptest::collection::vec(proptest::collection::vec(0..20usize, 0..3), 1..8),
        ) {
            let count = parents.len();
            let below = |at: usize| parents[at].filter(|parent| *parent < at);
            let files: HashMap<usize, (u64, Option<usize>)> =
                (0..count).map(|at| (at, (1 << at, below(at)))).collect();
            let owners: Vec<(usize, Vec<usize>)> =
                owners.into_iter().map(|held| held.into_iter().map(|file| file % count).collect()).enumerate().collect();
            let graph = Graph { files, owners };
            let before = graph.needed_bytes();
            for (owner, share) in graph.shares() {
                let mut without = graph.clone();
                without.owners.retain(|(other, _)| *other != owner);
                prop_assert_eq!(before - without.needed_bytes(), share.exclusive_bytes);
            }
        }
    }
}
