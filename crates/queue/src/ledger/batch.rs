//! A batch: commands of many callers and their bodies, with commands of the leader, committed as one entry.

use bytes::Bytes;
use postroad_core::Timestamp;
use postroad_ledger::{
    Dispatcher, Ledger,
    command::{ChangeRequest, Command, Content, Reply, Which},
    dispatch::Reservation,
};
use postroad_proto::log;
use postroad_raft::ProposeError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Commands and bytes of one entry; the last request added may exceed either.
const COMMANDS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;

/// Estimated bytes of a command, and of each recipient in it.
const COMMAND_BYTES: usize = 256;
const RECIPIENT_BYTES: usize = 96;

/// Bytes of the position of a recipient, at most.
const POSITION_BYTES: usize = 5;

/// One reply for each command of a request, in order.
pub(crate) type CommitResult = Result<Vec<Reply>, ProposeError>;

/// Commands of one caller that are committed together.
pub(crate) struct CommitRequest {
    pub(crate) commands: Vec<Command>,
    /// The slots in the commands number these.
    pub(crate) bodies: Vec<Bytes>,
    /// Estimated bytes that it adds to an entry.
    pub(crate) bytes: usize,
    /// The caller may be gone; a dropped reply is harmless.
    pub(crate) answer: oneshot::Sender<CommitResult>,
    /// Its share of the bound on waiting bytes.
    pub(crate) room: OwnedSemaphorePermit,
}

impl CommitRequest {
    pub(crate) fn refuse(self, error: ProposeError) {
        let _ = self.answer.send(Err(error));
    }
}

/// Estimates the bytes that commands and their bodies add to an entry.
pub(crate) fn bytes(commands: &[Command], bodies: &[Bytes]) -> usize {
    let weight = |command: &Command| match command {
        Command::Accept(accept) => COMMAND_BYTES + accept.recipients.len() * RECIPIENT_BYTES,
        Command::Change(request) => COMMAND_BYTES + recipients_of(request) * POSITION_BYTES,
        _ => COMMAND_BYTES,
    };
    commands.iter().map(weight).sum::<usize>() + bodies.iter().map(Bytes::len).sum::<usize>()
}

fn recipients_of(request: &ChangeRequest) -> usize {
    match &request.which {
        Which::Every => 1,
        Which::Recipients(recipients) => recipients.len(),
    }
}

/// An entry being built.
pub(crate) struct Batch {
    commands: Vec<Command>,
    bodies: Vec<Bytes>,
    bytes: usize,
    after_commit: AfterCommit,
}

/// What to do when the entry has been committed or has failed.
#[derive(Default)]
pub(crate) struct AfterCommit {
    /// How many commands, at the front, are the leader's own.
    own: usize,
    waiting: Vec<(usize, oneshot::Sender<CommitResult>, OwnedSemaphorePermit)>,
    reservations: Vec<Reservation>,
}

impl Batch {
    /// Begins with the leader's own commands, which must come first.
    pub(crate) fn new(own: Vec<Command>) -> Self {
        let after_commit = AfterCommit { own: own.len(), ..AfterCommit::default() };
        Self { commands: own, bodies: Vec::new(), bytes: 0, after_commit }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.commands.len() < COMMANDS_MAX && self.bytes < BYTES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Adds a request; chooses a source for deliveries due now, so that accept and assign are one commit.
    pub(crate) fn add(
        &mut self,
        request: CommitRequest,
        now: Timestamp,
        ledger: &Ledger,
        dispatcher: &mut Dispatcher,
    ) {
        let first_slot = u32::try_from(self.bodies.len()).expect("the bodies of an entry are bounded");
        let count = request.commands.len();
        for mut command in request.commands {
            shift_slot(&mut command, first_slot);
            self.offer(&mut command, now, ledger, dispatcher);
            self.commands.push(command);
        }
        self.bytes += request.bytes;
        self.bodies.extend(request.bodies);
        self.after_commit.waiting.push((count, request.answer, request.room));
    }

    fn offer(&mut self, command: &mut Command, now: Timestamp, ledger: &Ledger, dispatcher: &mut Dispatcher) {
        let Command::Accept(accept) = command else { return };
        // A message proposed again is in the ledger already: it must not reserve room.
        if accept.expires_at <= now || ledger.knows(accept.id) {
            return;
        }
        let tenant = accept.tenant;
        for recipient in accept.recipients.iter_mut().filter(|recipient| recipient.not_before <= now) {
            let offered = dispatcher.offer(ledger, tenant, recipient.pool, &recipient.site);
            if let Some((grant, reservation)) = offered {
                recipient.grant = Some(grant);
                self.after_commit.reservations.push(reservation);
            }
        }
    }

    /// Adds assignments of deliveries that are due, and expiries.
    pub(crate) fn add_due(&mut self, now: Timestamp, ledger: &Ledger, dispatcher: &mut Dispatcher) {
        let due = dispatcher.poll(ledger, now, COMMANDS_MAX.saturating_sub(self.commands.len()));
        for (assign, reservation) in due.assigns {
            self.commands.push(Command::Assign(assign));
            self.after_commit.reservations.push(reservation);
        }
        if !due.expired.is_empty() {
            self.commands.push(Command::Expire(due.expired));
        }
    }

    /// Returns the entry's head and bodies, and what to do after the commit.
    pub(crate) fn seal(self, at: Timestamp) -> (Bytes, Vec<Bytes>, AfterCommit) {
        let head = log::Batch { at, commands: self.commands }.encode();
        (head, self.bodies, self.after_commit)
    }
}

/// Moves a command's slot behind the bodies of the requests added before.
fn shift_slot(command: &mut Command, by: u32) {
    match command {
        Command::Accept(accept) => {
            if let Content::Slot(slot) = &mut accept.content {
                *slot += by;
            }
        }
        Command::StageChunk { slot, .. } => *slot += by,
        _ => {}
    }
}

impl AfterCommit {
    /// Releases the reserved room in lanes; with `failed` the deliveries return to their queues.
    pub(crate) fn release_reservations(
        &mut self,
        ledger: &Ledger,
        dispatcher: &mut Dispatcher,
        failed: bool,
    ) {
        for reservation in self.reservations.drain(..) {
            dispatcher.release_reservation(ledger, reservation, failed);
        }
    }

    /// Answers every caller.
    pub(crate) fn answer(self, answer: CommitResult) {
        let mut replies = match answer {
            Ok(replies) => replies.into_iter().skip(self.own),
            Err(error) => {
                for (_, waiting, _) in self.waiting {
                    let _ = waiting.send(Err(error.clone()));
                }
                return;
            }
        };
        for (count, waiting, _room) in self.waiting {
            let _ = waiting.send(Ok(replies.by_ref().take(count).collect()));
        }
    }
}
