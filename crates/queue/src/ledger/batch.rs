//! What is committed together: commands of many callers, the bodies they bring, and what the leader adds.

use bytes::Bytes;
use postroad_core::Timestamp;
use postroad_ledger::{
    Dispatcher, Ledger,
    command::{Command, Content, Reply},
    dispatch::Reservation,
};
use postroad_proto::log;
use postroad_raft::ProposeError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Commands in one entry, and bytes of it; the last work may go past either.
const COMMANDS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;

/// What a command takes, about, and each recipient that it names.
const COMMAND_BYTES: usize = 256;
const RECIPIENT_BYTES: usize = 96;

/// What became of a work's commands, one reply for each.
pub(crate) type Answer = Result<Vec<Reply>, ProposeError>;

/// Commands of one caller that are committed together.
pub(crate) struct Work {
    pub(crate) commands: Vec<Command>,
    /// The slots in the commands count these.
    pub(crate) bodies: Vec<Bytes>,
    /// What it adds to an entry, about.
    pub(crate) bytes: usize,
    /// Whoever does not wait any more is not missed.
    pub(crate) answer: oneshot::Sender<Answer>,
    /// The room it takes among what waits.
    pub(crate) room: OwnedSemaphorePermit,
}

impl Work {
    pub(crate) fn refuse(self, error: ProposeError) {
        let _ = self.answer.send(Err(error));
    }
}

/// Returns what commands and their bodies add to an entry, about.
pub(crate) fn bytes(commands: &[Command], bodies: &[Bytes]) -> usize {
    let weight = |command: &Command| match command {
        Command::Accept(accept) => COMMAND_BYTES + accept.recipients.len() * RECIPIENT_BYTES,
        _ => COMMAND_BYTES,
    };
    commands.iter().map(weight).sum::<usize>() + bodies.iter().map(Bytes::len).sum::<usize>()
}

/// An entry that is being put together.
pub(crate) struct Batch {
    commands: Vec<Command>,
    bodies: Vec<Bytes>,
    bytes: usize,
    pending: Pending,
}

/// What is left to do once the fate of an entry is known.
#[derive(Default)]
pub(crate) struct Pending {
    /// The commands in front that are the leader's own.
    own: usize,
    waiting: Vec<(usize, oneshot::Sender<Answer>, OwnedSemaphorePermit)>,
    reservations: Vec<Reservation>,
}

impl Batch {
    /// Begins with commands of the leader's own, which must come before everything else.
    pub(crate) fn new(own: Vec<Command>) -> Self {
        let pending = Pending { own: own.len(), ..Pending::default() };
        Self { commands: own, bodies: Vec::new(), bytes: 0, pending }
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

    /// Adds a work; a lane is chosen for what is due now, so that accept and assign are one commit.
    pub(crate) fn add(&mut self, work: Work, now: Timestamp, ledger: &Ledger, dispatcher: &mut Dispatcher) {
        let first_slot = u32::try_from(self.bodies.len()).expect("the bodies of an entry are bounded");
        let count = work.commands.len();
        for mut command in work.commands {
            move_slot(&mut command, first_slot);
            self.offer(&mut command, now, ledger, dispatcher);
            self.commands.push(command);
        }
        self.bytes += work.bytes;
        self.bodies.extend(work.bodies);
        self.pending.waiting.push((count, work.answer, work.room));
    }

    fn offer(&mut self, command: &mut Command, now: Timestamp, ledger: &Ledger, dispatcher: &mut Dispatcher) {
        let Command::Accept(accept) = command else { return };
        // One that is proposed again is held already: it must not take room from others.
        if accept.expires_at <= now || ledger.knows(accept.id) {
            return;
        }
        for recipient in accept.recipients.iter_mut().filter(|recipient| recipient.not_before <= now) {
            if let Some((lane, reservation)) = dispatcher.offer(ledger, recipient.pool, &recipient.site) {
                recipient.assign = Some(lane);
                self.pending.reservations.push(reservation);
            }
        }
    }

    /// Adds what waits to be assigned, and what waits no longer because it expired.
    pub(crate) fn add_due(&mut self, now: Timestamp, ledger: &Ledger, dispatcher: &mut Dispatcher) {
        let due = dispatcher.poll(ledger, now, COMMANDS_MAX.saturating_sub(self.commands.len()));
        for (assign, reservation) in due.assigns {
            self.commands.push(Command::Assign(assign));
            self.pending.reservations.push(reservation);
        }
        if !due.expired.is_empty() {
            self.commands.push(Command::Expire(due.expired));
        }
    }

    /// Returns the entry's head and bodies, and what is to be done afterwards.
    pub(crate) fn seal(self, at: Timestamp) -> (Bytes, Vec<Bytes>, Pending) {
        let head = log::Batch { at, commands: self.commands }.encode();
        (head, self.bodies, self.pending)
    }
}

/// A body stands behind those of the works before.
fn move_slot(command: &mut Command, by: u32) {
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

impl Pending {
    /// Gives back the room in the lanes; with `failed` the deliveries go back to their queues.
    pub(crate) fn settle(&mut self, ledger: &Ledger, dispatcher: &mut Dispatcher, failed: bool) {
        for reservation in self.reservations.drain(..) {
            dispatcher.settle(ledger, reservation, failed);
        }
    }

    /// Tells everybody what became of their commands.
    pub(crate) fn answer(self, answer: Answer) {
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
