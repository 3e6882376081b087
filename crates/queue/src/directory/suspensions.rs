//! Suspensions: what an operator's call asks for, and which have come to their end. Pure: time is passed in.

use std::{sync::Arc, time::Duration};

use postroad_core::Timestamp;
use postroad_directory::{Change, Command, Put, PutSuspension, ScopeName, View};

/// Scopes in one call.
pub(super) const SCOPES_MAX: usize = 1000;

/// Returns the changes that suspend `scopes`, from `now` on.
pub(super) fn suspend(
    scopes: &[ScopeName],
    reason: &str,
    actor: &str,
    now: Timestamp,
    length: Option<Duration>,
) -> Vec<Change> {
    let (reason, actor): (Arc<str>, Arc<str>) = (reason.trim().into(), actor.into());
    let until = length.map(|length| now.after(length));
    let put = |scope: &ScopeName| PutSuspension {
        scope: scope.clone(),
        reason: reason.clone(),
        actor: actor.clone(),
        since: now,
        until,
    };
    scopes.iter().map(|scope| Change::Put(Put::Suspension(put(scope)))).collect()
}

/// Returns the changes that resume `scopes`.
pub(super) fn resume(scopes: &[ScopeName]) -> Vec<Change> {
    scopes.iter().map(|scope| Change::Remove(scope.item())).collect()
}

/// Returns the commands that end what is over at `now`.
pub(super) fn ended(view: &View, now: Timestamp) -> Vec<Command> {
    let ended = view.suspensions().filter_map(|suspension| {
        let until = suspension.until.filter(|until| *until <= now)?;
        Some(Command::EndSuspension { name: suspension.name.clone(), until })
    });
    ended.collect()
}

/// Returns how long until the next suspension is over.
pub(super) fn next_end(view: &View, now: Timestamp) -> Option<Duration> {
    view.suspensions().filter_map(|suspension| suspension.until).map(|until| until.since(now)).min()
}

#[cfg(test)]
mod tests {
    use postroad_directory::Directory;

    use super::*;

    #[test]
    fn a_suspension_ends_when_its_time_is_over_and_others_stay() {
        let at = Timestamp::from_millis;
        let mut directory = Directory::new();
        let mut suspend = |site: &str, length| {
            let scopes = [ScopeName::Site(site.into())];
            let changes = suspend(&scopes, " blocked ", "eve", at(1000), length);
            directory.apply(&Command::Change(changes)).unwrap();
        };
        suspend("a.example", Some(Duration::from_secs(1)));
        suspend("b.example", Some(Duration::from_secs(2)));
        suspend("c.example", None);
        let view = |directory: &Directory| View::empty().apply(directory.everything());
        let first = view(&directory);
        assert_eq!(first.suspensions().map(|held| &*held.reason).collect::<Vec<_>>(), ["blocked"; 3]);
        assert_eq!(
            (ended(&first, at(1999)).len(), next_end(&first, at(1999))),
            (0, Some(Duration::from_millis(1)))
        );
        let over = ended(&first, at(2000));
        assert_eq!(over, [Command::EndSuspension { name: "site a.example".into(), until: at(2000) }]);
        directory.apply(&over[0]).unwrap();
        assert_eq!(next_end(&view(&directory), at(2000)), Some(Duration::from_secs(1)));
        for end in ended(&view(&directory), at(9000)) {
            directory.apply(&end).unwrap();
        }
        assert_eq!(next_end(&view(&directory), at(9000)), None);
        directory.apply(&Command::Change(resume(&[ScopeName::Site("c.example".into())]))).unwrap();
        assert_eq!(view(&directory).suspensions().count(), 0);
    }
}
