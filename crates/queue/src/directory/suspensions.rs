//! Suspensions: what an operator's call asks for, and which have come to their end. Time is passed in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postroad_core::Timestamp;
use postroad_directory::{Change, Command, Directory, Item, Put, PutSuspension, ScopeName, Suspension, View};

use super::ClockCheck;
use crate::clock;

/// Scopes in one call.
pub(super) const SCOPES_MAX: usize = 1000;
/// Suspensions in force at a time: nodes look at all of them when one changes.
pub(super) const SUSPENSIONS_MAX: usize = 10_000;
/// Suspensions that one entry of the log ends.
const ENDS_MAX: usize = 1000;

/// How long a process waits before it ends suspensions that are older than itself: by then each queue node has announced
/// twice how its clock differs.
const CLOCKS_KNOWN_AFTER: Duration = Duration::from_secs(120);
/// The pause before what is over is looked at again.
const ENDS_RETRY: Duration = Duration::from_secs(1);

/// What an operator's call asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspend<'a> {
    pub(super) scopes: &'a [ScopeName],
    pub(super) reason: &'a str,
    pub(super) actor: &'a str,
    /// `None` until it is resumed.
    pub(super) length: Option<Duration>,
}

/// Returns the changes that suspend the scopes from `now` on; what is suspended already keeps its beginning.
pub(super) fn suspend(directory: &Directory, now: Timestamp, asked: Suspend<'_>) -> Vec<Change> {
    let (reason, actor): (Arc<str>, Arc<str>) = (asked.reason.trim().into(), asked.actor.into());
    let until = asked.length.map(|length| now.after(length));
    let put = |scope: &ScopeName| PutSuspension {
        scope: scope.clone(),
        reason: reason.clone(),
        actor: actor.clone(),
        // An earlier leader's clock may have been ahead.
        since: in_force(directory, scope).map_or(now, |held| held.since.min(now)),
        until,
    };
    asked.scopes.iter().map(|scope| Change::Put(Put::Suspension(put(scope)))).collect()
}

/// Returns true when there is room for the suspensions of these scopes.
pub(super) fn has_room(directory: &Directory, scopes: &[ScopeName]) -> bool {
    let new = scopes.iter().filter(|scope| in_force(directory, scope).is_none()).count();
    let held = directory.items().filter(|item| matches!(item, Item::Suspension(_))).count();
    new == 0 || held + new <= SUSPENSIONS_MAX
}

fn in_force<'a>(directory: &'a Directory, scope: &ScopeName) -> Option<&'a Suspension> {
    match directory.item(&scope.item())? {
        Item::Suspension(held) => Some(held),
        _ => None,
    }
}

/// Returns the changes that resume `scopes`.
pub(super) fn resume(scopes: &[ScopeName]) -> Vec<Change> {
    scopes.iter().map(|scope| Change::Remove(scope.item())).collect()
}

/// Returns scopes for a line of the log.
pub(super) fn listed(scopes: &[ScopeName]) -> String {
    const LISTED_MAX: usize = 10;
    let first: Vec<String> = scopes.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    match scopes.len().checked_sub(LISTED_MAX) {
        None | Some(0) => first.join(", "),
        Some(more) => format!("{} and {more} more", first.join(", ")),
    }
}

/// Decides when the leader ends suspensions: a clock that is wrong must not end them all.
///
/// A clock that is set while the process runs is ignored, so the danger is a process that starts with a wrong one.
#[derive(Debug)]
pub(super) struct SuspensionEnds {
    clock: ClockCheck,
    started: (Timestamp, Instant),
    /// The clock is known to be wrong, and that is in the log.
    is_wrong: bool,
}

impl SuspensionEnds {
    pub(super) fn new(clock: ClockCheck) -> Self {
        Self { clock, started: (clock::now(), postroad_env::now()), is_wrong: false }
    }

    /// Returns the commands that end what is over at `wall`, as many as fit an entry.
    pub(super) fn decide(&mut self, view: &View, now: Instant, wall: Timestamp) -> Vec<Command> {
        let (started_at, started) = self.started;
        let knows_clocks = now.saturating_duration_since(started) >= CLOCKS_KNOWN_AFTER;
        let since = if knows_clocks { Timestamp::ZERO } else { started_at };
        let ended = ended(view, wall, since);
        let is_wrong = !ended.is_empty() && !self.clock.may_be_right();
        if is_wrong && !self.is_wrong {
            tracing::warn!(
                "suspensions go on: the clocks of most queue nodes differ from this node's; \
                 restart it if its clock has been corrected since it started"
            );
        }
        self.is_wrong = is_wrong;
        if is_wrong { Vec::new() } else { ended }
    }
}

/// Returns the commands that end those begun from `since` on that are over at `now`, as many as fit an entry.
fn ended(view: &View, now: Timestamp, since: Timestamp) -> Vec<Command> {
    let ended = view.suspensions().filter(|suspension| suspension.since >= since).filter_map(|suspension| {
        let until = suspension.until.filter(|until| *until <= now)?;
        Some(Command::EndSuspension { name: suspension.name.clone(), until })
    });
    ended.take(ENDS_MAX).collect()
}

/// Returns how long until the next suspension is over, or until one that is over is looked at again.
pub(super) fn next_end(view: &View, now: Timestamp) -> Option<Duration> {
    let ends = view.suspensions().filter_map(|suspension| suspension.until);
    ends.map(|until| until.since(now)).map(|left| if left.is_zero() { ENDS_RETRY } else { left }).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(3600));

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn site(site: &str) -> ScopeName {
        ScopeName::Site(site.into())
    }

    fn suspend(directory: &mut Directory, now: Timestamp, scopes: &[ScopeName], length: Option<Duration>) {
        let asked = Suspend { scopes, reason: " blocked ", actor: "eve", length };
        let changes = super::suspend(directory, now, asked);
        directory.apply(&Command::Change(changes)).unwrap();
    }

    fn view(directory: &Directory) -> View {
        View::empty().apply(directory.everything())
    }

    #[test]
    fn a_suspension_ends_when_its_time_is_over_and_others_stay() {
        let mut directory = Directory::new();
        let (one, two) = (Duration::from_secs(1), Duration::from_secs(2));
        for (name, length) in [("a.example", Some(one)), ("b.example", Some(two)), ("c.example", None)] {
            suspend(&mut directory, at(1000), &[site(name)], length);
        }
        let first = view(&directory);
        assert_eq!(first.suspensions().map(|held| &*held.reason).collect::<Vec<_>>(), ["blocked"; 3]);
        assert_eq!(
            (ended(&first, at(1999), Timestamp::ZERO).len(), next_end(&first, at(1999))),
            (0, Some(Duration::from_millis(1)))
        );
        let over = ended(&first, at(2000), Timestamp::ZERO);
        assert_eq!(over, [Command::EndSuspension { name: "site a.example".into(), until: at(2000) }]);
        directory.apply(&over[0]).unwrap();
        assert_eq!(next_end(&view(&directory), at(2000)), Some(Duration::from_secs(1)));
        for end in ended(&view(&directory), at(9000), Timestamp::ZERO) {
            directory.apply(&end).unwrap();
        }
        assert_eq!(next_end(&view(&directory), at(9000)), None);
        directory.apply(&Command::Change(resume(&[site("c.example")]))).unwrap();
        assert_eq!(view(&directory).suspensions().count(), 0);
    }

    #[test]
    fn a_process_with_a_wrong_clock_does_not_end_suspensions() {
        const DAY: u64 = 86_400_000;
        let mut directory = Directory::new();
        let started = postroad_env::now();
        let check = |directory: &Directory, age_secs, wall, may_be_right, expected: usize| {
            let clock = ClockCheck::new(move || may_be_right);
            let mut ends = SuspensionEnds { clock, started: (at(2 * DAY), started), is_wrong: false };
            let now = started + Duration::from_secs(age_secs);
            assert_eq!(ends.decide(&view(directory), now, wall).len(), expected);
        };
        // The node has been restarted with a clock that is a day ahead, and does not know the other clocks yet.
        suspend(&mut directory, at(DAY), &[site("a.example")], LONG);
        check(&directory, 0, at(2 * DAY), true, 0);
        check(&directory, 119, at(2 * DAY), true, 0);
        check(&directory, 120, at(2 * DAY), false, 0);
        check(&directory, 120, at(2 * DAY), true, 1);
        // What has begun since waits for nothing.
        suspend(&mut directory, at(2 * DAY + 1000), &[site("b.example")], Some(Duration::from_secs(1)));
        check(&directory, 2, at(2 * DAY + 1999), true, 0);
        check(&directory, 2, at(2 * DAY + 2000), true, 1);
        check(&directory, 2, at(2 * DAY + 2000), false, 0);
        assert_eq!(next_end(&view(&directory), at(2 * DAY + 2000)), Some(ENDS_RETRY), "it does not spin");
    }

    #[test]
    fn a_suspension_that_is_repeated_keeps_its_beginning() {
        let mut directory = Directory::new();
        let since = |directory: &Directory| {
            let view = view(directory);
            view.suspensions().map(|held| (held.since, held.until)).collect::<Vec<_>>()
        };
        suspend(&mut directory, at(1000), &[site("a.example")], LONG);
        suspend(&mut directory, at(5000), &[site("a.example"), site("b.example")], LONG);
        let until = Some(at(3_605_000));
        assert_eq!(since(&directory), [(at(1000), until), (at(5000), until)]);
        directory.apply(&Command::Change(resume(&[site("a.example")]))).unwrap();
        suspend(&mut directory, at(9000), &[site("a.example")], None);
        assert_eq!(since(&directory)[0], (at(9000), None));
        let short = Some(Duration::from_secs(1));
        suspend(&mut directory, at(500), &[site("a.example")], short);
        assert_eq!(since(&directory)[0], (at(500), Some(at(1500))), "this leader's clock is behind");
    }

    #[test]
    fn suspensions_and_the_ends_of_an_entry_are_bounded() {
        let mut directory = Directory::new();
        let all: Vec<ScopeName> =
            (0..SUSPENSIONS_MAX).map(|number| site(&format!("{number}.example"))).collect();
        for part in all.chunks(SCOPES_MAX) {
            assert!(has_room(&directory, part));
            suspend(&mut directory, at(1000), part, LONG);
        }
        assert!(!has_room(&directory, &[site("one-more.example")]));
        assert!(has_room(&directory, &all[..1]), "it may be prolonged");
        let mut entries = 0;
        while let over = ended(&view(&directory), at(9_000_000), Timestamp::ZERO)
            && !over.is_empty()
        {
            for end in &over {
                directory.apply(end).unwrap();
            }
            entries += 1;
        }
        assert_eq!(entries, SUSPENSIONS_MAX / ENDS_MAX);
    }
}
