use std::time::Duration;

use postroad_core::{Domain, GroupId, Timestamp};
use postroad_directory::{
    Change, Command, Directory, LaneLimits, Put, PutPool, PutSource, PutSuspension, PutTenant, ScopeName,
    SenderDomains,
};

use super::*;
use crate::{Home, feedback::FeedbackConfig, group_attempts::GroupAttempts, rate::RateLimiter};

/// The lanes of one source, and the only lane.
struct Fixture {
    lanes: Lanes,
    handle: LaneHandle,
    attempts: Arc<GroupAttempts>,
    _home: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = LaneConfig {
            feedback: FeedbackConfig {
                initial: 1,
                pause_first: Duration::from_millis(1),
                pause_max: Duration::from_mins(5),
            },
            wait_max: Duration::from_mins(5),
            idle: Duration::from_secs(5),
        };
        let metrics = Arc::new(OutboundMetrics::default());
        let lanes =
            Lanes::new(config, Journal::open(&Home::Directory(home.path().to_owned())), metrics.clone());
        let source = Arc::new(Source {
            id: SourceId(1),
            name: "one".into(),
            address: None,
            helo: Domain::parse("out.example").unwrap(),
            nodes: Vec::new(),
            owner: None,
            epoch: Epoch(1),
        });
        let (site, now): (Arc<str>, _) = ("example.org".into(), postroad_env::now());
        let state = State {
            lane: Lane::new(config, LaneLimits::default(), RateLimiter::new(now, []), now),
            source: source.clone(),
            abort: CancellationToken::new(),
            timer: None,
            paused: None,
        };
        let handle = LaneHandle {
            id: 1,
            source: source.id,
            metrics: Arc::new(LaneMetrics::new(metrics, &source.name, &site)),
            site,
            state: Mutex::new(state),
            wake: Notify::new(),
        };
        Self { lanes, handle, attempts: Arc::new(GroupAttempts::new(GroupId(1))), _home: home }
    }

    /// Returns a job whose only attempt is pending.
    fn job(&self, number: u128) -> Job {
        let job = Job::for_test(&self.attempts, self.handle.source, number, 1);
        let id = job.attempt_id(&job.recipients[0]);
        self.attempts.with(|pending| pending.receive(&id, &self.handle.name()));
        job
    }

    /// Pauses the lane, and waits until the pause is over; its timer has not run.
    fn pause_and_wait(&self) {
        self.lanes.ended(&self.handle, Signal::Refused("421 4.7.0 slow down".into()));
        while self.handle.with(|lane| lane.window(postroad_env::now())) == 0 {
            postroad_env::pause(Duration::from_millis(1));
        }
        assert!(self.handle.with(|lane| lane.pause().is_some()));
    }

    fn given_back(&self) -> usize {
        self.attempts.with(|pending| pending.take_answers()).len()
    }
}

#[test]
fn jobs_are_given_back_by_a_pause_that_follows_one_whose_timer_has_not_run() {
    let fixture = Fixture::new();
    fixture.pause_and_wait();
    let job = fixture.job(1);
    fixture.handle.with(|lane| lane.push(postroad_env::now(), job)).unwrap();
    fixture.lanes.ended(&fixture.handle, Signal::Refused("421 4.7.0 slow down".into()));
    assert_eq!(fixture.given_back(), 1);
    assert_eq!(fixture.handle.with(|lane| lane.waiting()), 0);
}

#[test]
fn a_pause_that_a_person_ends_is_not_counted_and_the_windows_are_sent_again() {
    let fixture = Fixture::new();
    let is_counted = || fixture.handle.state.lock().paused.is_some();
    fixture.lanes.ended(&fixture.handle, Signal::Local("too many open files".into()));
    assert!(is_counted());
    let mut windows = fixture.lanes.windows_watch();
    windows.borrow_and_update();
    let mut asked = fixture.job(1);
    asked.retry_now = true;
    assert_eq!(fixture.lanes.push_to(&fixture.handle, asked, |_| false), Wake::New);
    assert!(!is_counted() && windows.has_changed().unwrap());
}

#[test]
fn what_is_assigned_although_it_is_suspended_is_given_back_after_a_second() {
    let fixture = Fixture::new();
    let now = postroad_env::now();
    for number in 0..3 {
        let mut job = fixture.job(number);
        job.content = Some(bytes::Bytes::from_static(b"body"));
        fixture.lanes.refuse(job, now + Duration::from_millis(100 * number as u64));
    }
    assert!(fixture.lanes.refused.lock().iter().all(|(_, job)| job.content.is_none()));
    fixture.lanes.return_refused(Some(now + Duration::from_millis(999)));
    assert_eq!(fixture.given_back(), 0, "an older or newer leader would assign it again at once");
    fixture.lanes.return_refused(Some(now + Duration::from_millis(1100)));
    assert_eq!(fixture.given_back(), 2);
    // A node that stops does not wait.
    fixture.lanes.close(&OwnedSource::new(fixture.handle.source().0));
    assert_eq!(fixture.given_back(), 1);
}

/// Pushes a job to a new lane while `scopes` are suspended; returns whether it is kept for a while.
fn is_kept(scopes: &[ScopeName]) -> bool {
    let fixture = Fixture::new();
    let view = suspended(scopes);
    let (source, site) = (fixture.handle.source().0, &fixture.handle.site);
    let mut windows = fixture.lanes.windows_watch();
    windows.borrow_and_update();
    let lane = fixture.lanes.add_lane(&view, &mut OwnedSource::new(source), site);
    let stops_lane = lane.with(|lane| lane.is_suspended());
    assert_eq!(windows.has_changed().unwrap(), stops_lane, "{scopes:?}: the leader has the default window");
    let wake = fixture.lanes.push_to(&lane, fixture.job(1), |job| stops_job(&view, job));
    let is_kept = !fixture.lanes.refused.lock().is_empty();
    assert_eq!(wake, if is_kept { Wake::None } else { Wake::New }, "{scopes:?}");
    assert_eq!(fixture.given_back(), 0, "{scopes:?}");
    // A closed lane keeps nothing.
    lane.with(|lane| drop(lane.close()));
    fixture.given_back();
    fixture.lanes.push_to(&lane, fixture.job(2), |job| stops_job(&view, job));
    assert_eq!(fixture.given_back(), 1, "{scopes:?}");
    is_kept
}

/// Returns the directory with the source `one` and the node, tenant and pool of the jobs, all of which have number 1.
fn suspended(scopes: &[ScopeName]) -> View {
    let source = PutSource {
        name: "one".into(),
        address: None,
        helo: Domain::parse("out.example").unwrap(),
        nodes: Vec::new(),
    };
    let pool = PutPool { name: "p".into(), members: vec![("one".into(), 1)] };
    let tenant =
        PutTenant { name: "t".into(), domains: SenderDomains::Any, pool: "p".into(), message_size_max: None };
    let mut puts = vec![Put::Source(source), Put::Pool(pool), Put::Tenant(tenant)];
    puts.extend(scopes.iter().map(|scope| {
        Put::Suspension(PutSuspension {
            scope: scope.clone(),
            reason: "blocked".into(),
            actor: "eve".into(),
            since: Timestamp::ZERO,
            until: None,
        })
    }));
    let mut directory = Directory::new();
    directory.apply(&Command::Change(puts.into_iter().map(Change::Put).collect())).unwrap();
    View::empty().apply(directory.everything())
}

#[test]
fn a_job_of_a_new_lane_is_kept_for_a_while_whatever_has_suspended_it() {
    let site = |name: &str| ScopeName::Site(name.into());
    let lane = |site: &str| ScopeName::Lane { source: "one".into(), site: site.into() };
    assert!(!is_kept(&[]));
    assert!(!is_kept(&[site("example.net"), lane("example.net")]));
    for scope in [
        site("example.org"),
        lane("example.org"),
        ScopeName::Source("one".into()),
        ScopeName::Pool("p".into()),
        ScopeName::Tenant("t".into()),
    ] {
        assert!(is_kept(std::slice::from_ref(&scope)), "{scope}");
    }
}
