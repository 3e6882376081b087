//! The state of the directory: items by name, the revision of each, and the owners of sources.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeFrom,
    sync::Arc,
};

use postroad_core::{Epoch, NodeId, Timestamp};

use crate::{
    change::{Change, Command, Done, Refusal, Reply},
    item::{Caps, Item, ItemName, Kind, LaneLimits, Limits, OutboundNode, Owner, Source},
    plan::{Overlay, Plan},
};

/// Removals kept for readers that reconnect; a reader that missed more gets all items.
pub(crate) const REMOVALS_MAX: usize = 4096;

/// The configuration of a cluster. A clone is cheap: it shares every item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub(crate) revision: u64,
    pub(crate) numbers: Numbers,
    pub(crate) rows: BTreeMap<ItemName, Row>,
    /// Oldest first: what was removed, and at which revision.
    pub(crate) removed: VecDeque<(u64, ItemName)>,
    /// Removals up to this revision may have been dropped.
    pub(crate) forgotten: u64,
}

/// An item, and the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) revision: u64,
    pub(crate) item: Item,
}

/// The last number given to each kind of item. No number is given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) tenant: u32,
    pub(crate) pool: u32,
    pub(crate) source: u32,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// Makes a directory that holds only the default limits, at revision 1.
    #[must_use]
    pub fn new() -> Self {
        let LaneLimits { connections_max, messages_per_connection_max, window, rates } =
            LaneLimits::default();
        let caps = Caps {
            connections_max: Some(connections_max),
            messages_per_connection_max: Some(messages_per_connection_max),
            window: Some(window),
            rates: Some(rates),
        };
        let name = ItemName::default_limits();
        let limits = Limits { name: name.name.clone(), source: None, site: None, caps };
        let row = Row { revision: 1, item: Item::Limits(Arc::new(limits)) };
        Self {
            revision: 1,
            numbers: Numbers::default(),
            rows: BTreeMap::from([(name, row)]),
            removed: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// Returns the revision: every command that changes something raises it by one.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns an item.
    #[must_use]
    pub fn item(&self, name: &ItemName) -> Option<&Item> {
        self.rows.get(name).map(|row| &row.item)
    }

    /// Returns every item, by kind and name.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.rows.values().map(|row| &row.item)
    }

    /// Applies a committed command. A refused command changes nothing.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn apply(&mut self, command: &Command) -> Reply {
        match command {
            Command::Change(changes) => {
                let plan = Plan::of(self, changes)?;
                self.numbers = plan.numbers;
                Ok(self.commit(plan.overlay))
            }
            Command::Claim { node, incarnation } => Ok(self.claim(*node, *incarnation)),
            Command::Grant { source, node, incarnation } => {
                let owner = Owner { node: *node, incarnation: *incarnation };
                self.is_latest(owner).then_some(()).ok_or(Refusal::Superseded)?;
                let grantable = |held: &&Arc<Source>| held.id == *source && held.owner.is_none();
                let granted = self.sources().find(grantable).filter(|source| source.may_be_owned_by(*node));
                let granted = hand_over(granted.ok_or(Refusal::NotGrantable)?, Some(owner));
                Ok(self.commit(Overlay::from([granted])))
            }
            Command::Revoke { node, incarnation } => {
                Ok(self.revoke(Owner { node: *node, incarnation: *incarnation }))
            }
            Command::ReleaseSource { source, node, incarnation, epoch } => {
                let left = (*source, *epoch, Some(Owner { node: *node, incarnation: *incarnation }));
                let own = |held: &&Arc<Source>| (held.id, held.epoch, held.owner) == left;
                let own = self.sources().find(own).map(|source| hand_over(source, None));
                Ok(self.commit(own.into_iter().collect()))
            }
            Command::EndSuspension { name, until } => Ok(self.end_suspension(name, *until)),
        }
    }

    /// Checks a change without making it; `changed` is the number of items it would change.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn check(&self, changes: &[Change]) -> Reply {
        let overlay = Plan::of(self, changes)?.overlay;
        Ok(Done { revision: self.revision, changed: count(self.differing(overlay).len()) })
    }

    /// Returns the items of a change as it would put them.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn planned(&self, changes: &[Change]) -> Result<Vec<Item>, Refusal> {
        Ok(Plan::of(self, changes)?.overlay.into_values().flatten().collect())
    }

    fn claim(&mut self, node: NodeId, incarnation: u64) -> Done {
        let claimed = Item::Node(OutboundNode { node, incarnation });
        let owner = Owner { node, incarnation };
        let earlier = |held: Owner| held.node == node && held.incarnation != incarnation;
        let taken = self.sources().filter(|source| source.owner.is_some_and(earlier));
        let mut overlay: Overlay = taken.map(|source| hand_over(source, Some(owner))).collect();
        overlay.insert(ItemName::node(node), Some(claimed));
        self.commit(overlay)
    }

    fn revoke(&mut self, owner: Owner) -> Done {
        let owned = self.sources().filter(|source| source.owner == Some(owner));
        let mut overlay: Overlay = owned.map(|source| hand_over(source, None)).collect();
        if self.is_latest(owner) {
            overlay.insert(ItemName::node(owner.node), None);
        }
        self.commit(overlay)
    }

    fn end_suspension(&mut self, name: &Arc<str>, until: Timestamp) -> Done {
        let name = ItemName::new(Kind::Suspension, name.clone());
        let ends = matches!(self.item(&name), Some(Item::Suspension(held)) if held.until == Some(until));
        self.commit(ends.then_some((name, None)).into_iter().collect())
    }

    fn is_latest(&self, owner: Owner) -> bool {
        let latest = self.item(&ItemName::node(owner.node));
        matches!(latest, Some(Item::Node(node)) if node.incarnation == owner.incarnation)
    }

    fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.of_kind(Kind::Source).filter_map(|item| match item {
            Item::Source(source) => Some(source),
            _ => None,
        })
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Item> {
        let from: RangeFrom<ItemName> = ItemName::new(kind, "")..;
        self.rows.range(from).take_while(move |(name, _)| name.kind == kind).map(|(_, row)| &row.item)
    }

    /// Returns the items that would change.
    fn differing(&self, overlay: Overlay) -> Vec<(ItemName, Option<Item>)> {
        overlay.into_iter().filter(|(name, item)| self.item(name) != item.as_ref()).collect()
    }

    fn commit(&mut self, overlay: Overlay) -> Done {
        let differing = self.differing(overlay);
        let changed = count(differing.len());
        if changed > 0 {
            self.revision += 1;
        }
        let revision = self.revision;
        for (name, item) in differing {
            if let Some(item) = item {
                self.rows.insert(name, Row { revision, item });
            } else {
                self.rows.remove(&name);
                self.removed.push_back((revision, name));
            }
        }
        while self.removed.len() > REMOVALS_MAX {
            self.forgotten = self.removed.pop_front().map_or(self.forgotten, |(revision, _)| revision);
        }
        Done { revision, changed }
    }
}

/// Returns the source with another owner and a new epoch.
fn hand_over(source: &Source, owner: Option<Owner>) -> (ItemName, Option<Item>) {
    let epoch = Epoch(source.epoch.0 + 1);
    let source = Item::Source(Arc::new(Source { owner, epoch, ..source.clone() }));
    (source.name(), Some(source))
}

fn count(changed: usize) -> u32 {
    u32::try_from(changed).expect("a change is bounded, and so is the number of sources")
}
