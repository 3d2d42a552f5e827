//! The directories that are watched, as a tree: a rename moves one node, and the paths of all below it change with it. Pure.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// What the kernel calls a watched directory.
pub type Wd = i32;

/// The watched directories.
#[derive(Debug)]
pub struct Tree {
    root_path: PathBuf,
    root: Wd,
    nodes: HashMap<Wd, Node>,
}

#[derive(Debug)]
struct Node {
    /// Where it is; `None` for the root.
    place: Option<(Wd, OsString)>,
    children: HashMap<OsString, Wd>,
}

impl Tree {
    /// The root alone.
    pub fn new(root_path: PathBuf, root: Wd) -> Self {
        let nodes = HashMap::from([(root, Node { place: None, children: HashMap::new() })]);
        Self { root_path, root, nodes }
    }

    /// The watched directory itself.
    pub fn root(&self) -> Wd {
        self.root
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Every watched directory.
    pub fn all(&self) -> impl Iterator<Item = Wd> {
        self.nodes.keys().copied()
    }

    /// True when this one is watched.
    pub fn contains(&self, wd: Wd) -> bool {
        self.nodes.contains_key(&wd)
    }

    /// The directory with this name in another.
    pub fn child(&self, parent: Wd, name: &OsStr) -> Option<Wd> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Where a directory is: in which other one, and by which name.
    pub fn place(&self, wd: Wd) -> Option<(Wd, OsString)> {
        self.nodes.get(&wd)?.place.clone()
    }

    /// Puts a directory into another, wherever it was before. Gives what had that name until then, with all below it: the
    /// tree does not know it any more.
    pub fn insert(&mut self, parent: Wd, name: &OsStr, wd: Wd) -> Vec<Wd> {
        if wd == self.root || !self.nodes.contains_key(&parent) || self.is_within(parent, wd) {
            return Vec::new();
        }
        self.detach(wd);
        let before = self.child(parent, name).map_or_else(Vec::new, |before| self.remove(before));
        let place = Some((parent, name.to_owned()));
        match self.nodes.get_mut(&wd) {
            Some(node) => node.place = place,
            None => {
                self.nodes.insert(wd, Node { place, children: HashMap::new() });
            }
        }
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children.insert(name.to_owned(), wd);
        }
        before
    }

    /// Takes a directory out with all below it; gives them all.
    pub fn remove(&mut self, wd: Wd) -> Vec<Wd> {
        self.detach(wd);
        let (mut removed, mut waiting) = (Vec::new(), vec![wd]);
        while let Some(wd) = waiting.pop() {
            if let Some(node) = self.nodes.remove(&wd) {
                waiting.extend(node.children.into_values());
                removed.push(wd);
            }
        }
        removed
    }

    /// Where a directory is now.
    pub fn path(&self, wd: Wd) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut at = self.nodes.get(&wd)?;
        while let Some((parent, name)) = &at.place {
            names.push(name);
            at = self.nodes.get(parent)?;
        }
        let mut path = self.root_path.clone();
        path.extend(names.into_iter().rev());
        Some(path)
    }

    /// True when `wd` is `above` or below it.
    pub fn is_within(&self, mut wd: Wd, above: Wd) -> bool {
        loop {
            if wd == above {
                return true;
            }
            match self.nodes.get(&wd).and_then(|node| node.place.as_ref()) {
                Some((parent, _)) => wd = *parent,
                None => return false,
            }
        }
    }

    fn detach(&mut self, wd: Wd) {
        let place = self.nodes.get_mut(&wd).and_then(|node| node.place.take());
        if let Some((parent, name)) = place
            && let Some(parent) = self.nodes.get_mut(&parent)
            && parent.children.get(&name) == Some(&wd)
        {
            parent.children.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn tree() -> Tree {
        let mut tree = Tree::new("/w".into(), 1);
        tree.insert(1, name("a"), 2);
        tree.insert(2, name("b"), 3);
        tree.insert(3, name("c"), 4);
        tree
    }

    #[test]
    fn a_rename_moves_all_below() {
        let mut tree = tree();
        assert_eq!(tree.path(4).unwrap(), PathBuf::from("/w/a/b/c"));
        tree.insert(1, name("z"), 3);
        assert_eq!(tree.path(4).unwrap(), PathBuf::from("/w/z/c"));
        assert_eq!((tree.child(2, name("b")), tree.child(1, name("z"))), (None, Some(3)));
    }

    #[test]
    fn what_is_removed_goes_with_all_below() {
        let mut tree = tree();
        let mut removed = tree.remove(2);
        removed.sort_unstable();
        assert_eq!(removed, [2, 3, 4]);
        assert_eq!((tree.len(), tree.path(4), tree.child(1, name("a"))), (1, None, None));
        assert!(tree.remove(2).is_empty());
    }

    #[test]
    fn a_tree_stays_a_tree() {
        let mut tree = tree();
        tree.insert(4, name("loop"), 2);
        tree.insert(2, name("root"), 1);
        assert_eq!(tree.path(4).unwrap(), PathBuf::from("/w/a/b/c"));
        // Another directory takes a name that the tree still knows.
        let mut before = tree.insert(1, name("a"), 9);
        before.sort_unstable();
        assert_eq!(before, [2, 3, 4]);
        assert_eq!(tree.place(9), Some((1, name("a").to_owned())));
        assert_eq!(tree.child(1, name("a")), Some(9));
        assert_eq!(tree.path(9).unwrap(), PathBuf::from("/w/a"));
    }
}
