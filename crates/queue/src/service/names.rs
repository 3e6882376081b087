//! Names of the directory for what a ledger has numbers of, and back. What was removed has only its number.

use postroad_core::{PoolId, SourceId, TenantId};
use postroad_directory::{Item, Kind, View};
use postroad_ledger::{DeliveryView, MessageView, Selected, Selection};
use postroad_proto::queue as wire;
use tonic::Status;

pub(super) fn tenant(view: &View, id: TenantId) -> String {
    view.tenant(id).map_or_else(|| id.to_string(), |tenant| tenant.name.to_string())
}

pub(super) fn pool(view: &View, id: PoolId) -> String {
    view.pool(id).map_or_else(|| id.to_string(), |pool| pool.name.to_string())
}

pub(super) fn source(view: &View, id: SourceId) -> String {
    view.source(id).map_or_else(|| id.to_string(), |source| source.name.to_string())
}

/// Returns a message with the names in it.
pub(super) fn message(view: &View, message: &MessageView) -> wire::MessageView {
    let named = message.deliveries.iter().map(|row| delivery(view, row)).collect();
    wire::MessageView { tenant_name: tenant(view, message.tenant), deliveries: named, ..message.into() }
}

/// Returns a listed delivery with the names in it, and why it waits.
pub(super) fn listed(
    view: &View,
    selected: &Selected,
    waits: Option<wire::WaitReason>,
) -> wire::ListedDelivery {
    wire::ListedDelivery {
        tenant: tenant(view, selected.tenant),
        delivery: Some(wire::DeliveryView { waits, ..delivery(view, &selected.delivery) }),
        ..selected.into()
    }
}

/// Returns only which delivery it is, and its state and site.
pub(super) fn brief(selected: &Selected) -> wire::ListedDelivery {
    let state = wire::DeliveryState::from(selected.delivery.state).into();
    let site = selected.delivery.site.to_string();
    let delivery = wire::DeliveryView { state, site, ..wire::DeliveryView::default() };
    wire::ListedDelivery {
        id: Some(selected.id.into()),
        delivery: Some(delivery),
        ..wire::ListedDelivery::default()
    }
}

fn delivery(view: &View, delivery: &DeliveryView) -> wire::DeliveryView {
    wire::DeliveryView {
        pool_name: pool(view, delivery.pool),
        source_name: delivery.grant.map_or_else(String::new, |grant| source(view, grant.source)),
        ..delivery.into()
    }
}

/// Adds the tenant, pool and source that a selection names.
pub(super) fn resolve(
    view: &View,
    wire: &wire::Selection,
    selection: Selection,
) -> Result<Selection, Status> {
    Ok(Selection {
        tenant: number(view, Kind::Tenant, wire.tenant.as_deref())?.map(TenantId),
        pool: number(view, Kind::Pool, wire.pool.as_deref())?.map(PoolId),
        source: number(view, Kind::Source, wire.source.as_deref())?.map(SourceId),
        ..selection
    })
}

fn number(view: &View, kind: Kind, name: Option<&str>) -> Result<Option<u32>, Status> {
    let Some(name) = name else { return Ok(None) };
    let number = match view.item(kind, name) {
        Some(Item::Tenant(tenant)) => Some(tenant.id.0),
        Some(Item::Pool(pool)) => Some(pool.id.0),
        Some(Item::Source(source)) => Some(source.id.0),
        _ => name.parse().ok(),
    };
    let missing = || Status::not_found(format!("`{kind} {name}` does not exist"));
    number.map(Some).ok_or_else(missing)
}
