//! `cove tree`: which snapshot came from which, and which sandboxes go on from them, drawn with lines.
//!
//! ```text
//! miosa-sandbox
//! ├─ snap_1q7x "golden"  memory  12.0 MiB (+ 36.0 MiB shared)  3 min  of build
//! │  ├─ snap_8r2m  memory  4.0 MiB  1 min  of build  "before the upgrade"
//! │  │  └─ ● sbx_4k2p build  running
//! │  └─ ● sbx_9w1z try-2  paused
//! └─ ● sbx_0c3v  running
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use anyhow::{Context, Result};
use time::OffsetDateTime;

use crate::client::{Client, ConnectionArgs, Sandbox, Snapshot};
use crate::text::{age, bytes, printable};

/// Arguments of `cove tree`.
#[derive(clap::Args)]
pub struct Args {
    /// Only what is related to this sandbox or snapshot
    source: Option<String>,
}

/// Runs `cove tree`.
pub async fn run(args: Args, connection: &ConnectionArgs) -> Result<u8> {
    let client = Client::connect(connection)?;
    let focus = match &args.source {
        Some(text) => Some(match client.resolve_source(text).await? {
            crate::client::ForkSource::Sandbox(id) | crate::client::ForkSource::Snapshot(id) => id,
        }),
        None => None,
    };
    let snapshots: Vec<Snapshot> = client
        .snapshots(None)
        .await?
        .into_iter()
        .map(|record| serde_json::from_value(record).context("A snapshot record is not understood"))
        .collect::<Result<_>>()?;
    let sandboxes = client.list().await?;
    let tree = Tree::of(&snapshots, &sandboxes);
    let text = tree.draw(focus.as_deref(), OffsetDateTime::now_utc());
    io::stdout().lock().write_all(text.as_bytes()).context("Cannot print the tree")?;
    Ok(0)
}

/// A place in the tree.
#[derive(Clone, Copy)]
enum Node<'a> {
    Snapshot(&'a Snapshot),
    Sandbox(&'a Sandbox),
}

impl Node<'_> {
    fn id(&self) -> &str {
        match self {
            Node::Snapshot(snapshot) => &snapshot.id,
            Node::Sandbox(sandbox) => &sandbox.id,
        }
    }

    fn created_at(&self) -> &str {
        match self {
            Node::Snapshot(snapshot) => &snapshot.created_at,
            Node::Sandbox(sandbox) => &sandbox.created_at,
        }
    }

    fn label(&self, now: OffsetDateTime) -> String {
        match self {
            Node::Snapshot(snapshot) => snapshot_label(snapshot, now),
            Node::Sandbox(sandbox) => {
                let name = sandbox.name.as_deref().map_or_else(String::new, |name| format!(" {}", printable(name)));
                format!("● {}{name}  {}", sandbox.id, sandbox.state)
            }
        }
    }
}

fn snapshot_label(snapshot: &Snapshot, now: OffsetDateTime) -> String {
    let name = snapshot.name.as_deref().map_or_else(String::new, |name| format!(" \"{}\"", printable(name)));
    let badge = if snapshot.has_memory { "memory" } else { "disk only" };
    let shared = match snapshot.shared_bytes {
        0 => String::new(),
        shared => format!(" (+ {} shared)", bytes(shared)),
    };
    let of = snapshot.sandbox_name.as_deref().map_or_else(|| snapshot.sandbox_id.clone(), printable);
    let comment = snapshot.comment.as_deref().map_or_else(String::new, |text| format!("  \"{}\"", printable(text)));
    let (own, age) = (bytes(snapshot.exclusive_bytes), age(&snapshot.created_at, now));
    format!("{}{name}  {badge}  {own}{shared}  {age}  of {of}{comment}", snapshot.id)
}

/// Templates, and below each what came from it.
struct Tree<'a> {
    roots: BTreeMap<&'a str, Vec<Node<'a>>>,
    children: HashMap<&'a str, Vec<Node<'a>>>,
}

impl<'a> Tree<'a> {
    /// A snapshot whose parent is deleted hangs from its template.
    fn of(snapshots: &'a [Snapshot], sandboxes: &'a [Sandbox]) -> Self {
        let known: HashSet<&str> = snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
        let mut tree = Self { roots: BTreeMap::new(), children: HashMap::new() };
        let of_snapshots = snapshots.iter().map(|it| (Node::Snapshot(it), &it.parent_id, &it.template_id));
        let of_sandboxes = sandboxes.iter().map(|it| (Node::Sandbox(it), &it.snapshot_id, &it.template_id));
        for (node, parent, template) in of_snapshots.chain(of_sandboxes) {
            match parent.as_deref().filter(|parent| known.contains(parent)) {
                Some(parent) => tree.children.entry(parent).or_default().push(node),
                None => tree.roots.entry(template).or_default().push(node),
            }
        }
        for nodes in tree.roots.values_mut().chain(tree.children.values_mut()) {
            nodes.sort_by(|a, b| a.created_at().cmp(b.created_at()));
        }
        tree
    }

    fn draw(&self, focus: Option<&str>, now: OffsetDateTime) -> String {
        let mut text = String::new();
        for (template, nodes) in &self.roots {
            let related: Vec<Node<'a>> =
                nodes.iter().copied().filter(|node| focus.is_none_or(|id| self.holds(*node, id))).collect();
            if related.is_empty() {
                continue;
            }
            text.push_str(&format!("{}\n", printable(template)));
            self.draw_below(&related, now, &mut text);
        }
        text
    }

    /// `id` is at this node or below it.
    fn holds(&self, node: Node<'a>, id: &str) -> bool {
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            if node.id() == id {
                return true;
            }
            left.extend(self.children_of(node));
        }
        false
    }

    fn children_of(&self, node: Node<'a>) -> &[Node<'a>] {
        self.children.get(node.id()).map_or(&[], Vec::as_slice)
    }

    /// The nodes and all below them. A stack of its own, since a chain of snapshots may be long.
    fn draw_below(&self, nodes: &[Node<'a>], now: OffsetDateTime, text: &mut String) {
        let mut left: Vec<(Node<'a>, String, bool)> = Vec::new();
        let push = |left: &mut Vec<_>, nodes: &[Node<'a>], indent: &str| {
            for (place, node) in nodes.iter().enumerate().rev() {
                left.push((*node, indent.to_owned(), place + 1 == nodes.len()));
            }
        };
        push(&mut left, nodes, "");
        while let Some((node, indent, last)) = left.pop() {
            let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            text.push_str(&format!("{indent}{branch}{}\n", node.label(now)));
            push(&mut left, self.children_of(node), &format!("{indent}{below}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::client::tests_of_snapshots::snapshot;

    fn sandbox(id: &str, name: Option<&str>, from: Option<&str>) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            state: "running".to_owned(),
            template_id: "miosa-sandbox".to_owned(),
            cpu_count: 1,
            memory_mb: 512,
            disk_size_mb: 4096,
            boot_ms: None,
            boot_path: None,
            snapshot_id: from.map(str::to_owned),
            created_at: "1970-01-01T00:00:01Z".to_owned(),
            metadata: Value::Null,
        }
    }

    #[test]
    fn everything_hangs_from_where_it_came() {
        let mut snapshots = [
            snapshot("snap_c", None, Some("snap_a")),
            snapshot("snap_b", None, Some("snap_gone")),
            snapshot("snap_a", Some("golden"), None),
        ];
        snapshots[0].shared_bytes = 3 << 20;
        snapshots[1].has_memory = false;
        let sandboxes = [sandbox("sbx_1", Some("build"), Some("snap_c")), sandbox("sbx_2", None, None)];
        let tree = Tree::of(&snapshots, &sandboxes);
        let expected = "\
miosa-sandbox
├─ snap_b  disk only  1.0 MiB  0 s  of sbx_1
├─ snap_a \"golden\"  memory  1.0 MiB  0 s  of sbx_1
│  └─ snap_c  memory  1.0 MiB (+ 3.0 MiB shared)  0 s  of sbx_1
│     └─ ● sbx_1 build  running
└─ ● sbx_2  running
";
        assert_eq!(tree.draw(None, OffsetDateTime::UNIX_EPOCH), expected);
        let related = tree.draw(Some("sbx_1"), OffsetDateTime::UNIX_EPOCH);
        assert!(related.contains("snap_a") && !related.contains("snap_b") && !related.contains("sbx_2"), "{related}");
        assert_eq!(tree.draw(Some("sbx_9"), OffsetDateTime::UNIX_EPOCH), "");
    }
}
