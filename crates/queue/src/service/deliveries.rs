//! Many deliveries: listed by what people know of them, and changed.

use postroad_core::DeliveryId;
use postroad_ledger::{
    FIRST, Selected,
    command::{Command, Reply},
};
use postroad_proto::{
    CHANGED_MESSAGES_MAX, CHANGED_RECIPIENTS_MAX, parse_change,
    queue::{
        ChangeDeliveriesRequest, ChangeDeliveriesResponse, ChangeResult, ListDeliveriesRequest,
        ListDeliveriesResponse, ListedDelivery, MessageChange, MessageRecipients,
    },
};
use postroad_raft::ProposeError;
use tokio::task::yield_now;
use tonic::{Response, Status};

use super::{invalid, message::why_waits, names};
use crate::{
    clock,
    error::{not_leader, refused},
    ledger::LedgerGroup,
};

/// Deliveries looked at while the ledger waits: some milliseconds.
const SLICE: usize = 4096;

/// Deliveries looked at in one call.
const EXAMINED_MAX: usize = 100_000;

/// Deliveries of one page, and how many without a wish: a page fits a frame whatever they hold.
const PAGE_MAX: usize = 2000;
const PAGE_DEFAULT: usize = 500;

/// Commands committed as one request.
const COMMANDS_PER_REQUEST_MAX: usize = 256;

/// Returns a page of the deliveries that the request selects.
pub(super) async fn list(
    ledger: &LedgerGroup,
    request: ListDeliveriesRequest,
) -> Result<Response<ListDeliveriesResponse>, Status> {
    let view = ledger.views.borrow().clone();
    let wanted = request.selection.unwrap_or_default();
    let selection = wanted.without_names(clock::now()).map_err(invalid)?;
    let selection = names::resolve(&view, &wanted, selection)?;
    let from = request.from.as_ref().map(DeliveryId::try_from).transpose().map_err(invalid)?;
    let page_max = match request.deliveries_max as usize {
        0 => PAGE_DEFAULT,
        max => max.min(PAGE_MAX),
    };
    ledger.group.read_barrier().await.map_err(|error| refused(&error))?;
    let (mut deliveries, mut from, mut examined) = (Vec::new(), from.unwrap_or(FIRST), 0);
    loop {
        let room = page_max - deliveries.len();
        let slice = ledger.shared.with_leading(|state, leading| {
            let page = state.select(&selection, from, SLICE, room);
            let now = clock::now();
            let shown = |selected: &Selected| {
                if request.brief {
                    return names::brief(selected);
                }
                let waits = why_waits(state, leading, now, selected.tenant, &selected.delivery);
                names::listed(&view, selected, waits)
            };
            let shown: Vec<ListedDelivery> = page.selected.iter().map(shown).collect();
            (shown, page)
        });
        let Some((shown, page)) = slice else { return Err(not_leader(ledger.status().leader)) };
        deliveries.extend(shown);
        examined += page.examined;
        match page.next {
            Some(next) if examined < EXAMINED_MAX && deliveries.len() < page_max => from = next,
            next => {
                let next = next.map(Into::into);
                return Ok(Response::new(ListDeliveriesResponse { deliveries, next }));
            }
        }
        yield_now().await;
    }
}

/// Changes deliveries of messages, each message by one command; a call that is repeated changes nothing more.
pub(super) async fn change(
    ledger: &LedgerGroup,
    request: ChangeDeliveriesRequest,
    actor: &str,
) -> Result<Response<ChangeDeliveriesResponse>, Status> {
    let action = parse_change(request.change()).map_err(invalid)?;
    let named: usize = request.messages.iter().map(|message| message.recipients.len()).sum();
    if request.messages.len() > CHANGED_MESSAGES_MAX || named > CHANGED_RECIPIENTS_MAX {
        return Err(Status::invalid_argument("too many messages or recipients in one request"));
    }
    let change = |message: MessageRecipients| message.change(action, actor);
    let changes = request.messages.into_iter().map(change).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    if changes.iter().any(|change| change.message.group() != ledger.id()) {
        return Err(Status::invalid_argument("a message of another group"));
    }
    let mut answers = Vec::new();
    for chunk in changes.chunks(COMMANDS_PER_REQUEST_MAX) {
        let commands = chunk.iter().map(|change| Command::Change(Box::new(change.clone()))).collect();
        answers.push(ledger.enqueue(commands, Vec::new()).await.map_err(|error| refused(&error))?);
    }
    let mut messages = Vec::new();
    for answer in answers {
        let replies = answer.await.unwrap_or(Err(ProposeError::Unknown)).map_err(|error| refused(&error))?;
        for reply in replies {
            messages.push(changed(reply)?);
        }
    }
    Ok(Response::new(ChangeDeliveriesResponse { messages }))
}

fn changed(reply: Reply) -> Result<MessageChange, Status> {
    match reply {
        Reply::Changed(changes) => {
            let results = changes.into_iter().map(|change| ChangeResult::from(change).into()).collect();
            Ok(MessageChange { results })
        }
        Reply::NotFound => Ok(MessageChange { results: Vec::new() }),
        Reply::Accepted | Reply::Done | Reply::Refused(_) => {
            Err(Status::invalid_argument("a recipient does not exist, or there are too many"))
        }
    }
}
