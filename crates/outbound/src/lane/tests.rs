use std::sync::Arc;

use postroad_core::{GroupId, SourceId};
use postroad_directory::Rate;

use super::*;
use crate::group_attempts::GroupAttempts;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> LaneConfig {
    LaneConfig {
        feedback: FeedbackConfig { initial: 2, pause_first: 30 * SECOND, pause_max: 600 * SECOND },
        wait_max: 300 * SECOND,
        idle: 5 * SECOND,
    }
}

fn lane(start: Instant) -> Lane {
    Lane::new(config(), LaneLimits::default(), RateLimiter::new(start, []), start)
}

fn rated(start: Instant, messages: u64, per: Duration) -> Lane {
    let limits = LaneLimits { rates: [Rate { messages, per }].into(), ..LaneLimits::default() };
    Lane::new(config(), limits, RateLimiter::new(start, [(messages, per)]), start)
}

fn job(number: u128, received: Instant) -> Job {
    let mut job = Job::for_test(&Arc::new(GroupAttempts::new(GroupId(1))), SourceId(1), number, 2);
    job.received = received;
    job
}

fn started(next: Next) -> Option<u128> {
    match next {
        Next::Start(job) => Some(job.message.as_u128()),
        _ => None,
    }
}

#[test]
fn workers_are_created_for_jobs_up_to_the_concurrency() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    let wakes: Vec<Wake> = (0..4).map(|number| lane.push(now, job(number, now)).unwrap()).collect();
    assert_eq!(wakes, [Wake::New, Wake::New, Wake::None, Wake::None]);
    lane.worker_started();
    lane.worker_started();
    assert_eq!((started(lane.next(now)), started(lane.next(now))), (Some(0), Some(1)));
    assert!(lane.ended(now, Signal::Served).is_empty());
    assert!(lane.ended(now, Signal::Served).is_empty());
    // A successful round allows one more worker.
    assert_eq!(lane.wake(now), Wake::New);
    assert_eq!(lane.wake(now), Wake::None);
}

#[test]
fn an_idle_worker_is_woken_before_another_is_created() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    assert_eq!(lane.push(now, job(0, now)).unwrap(), Wake::New);
    lane.worker_started();
    assert_eq!(started(lane.next(now)), Some(0));
    assert!(matches!(lane.next(now), Next::Wait(None)));
    assert_eq!(lane.push(now, job(1, now)).unwrap(), Wake::Idle);
    lane.worker_woken();
    assert_eq!(started(lane.next(now)), Some(1));
    assert!(lane.try_exit());
    lane.worker_exited();
    assert_eq!(lane.push(now, job(2, now)).unwrap(), Wake::New);
}

#[test]
fn d_036_a_refusing_site_pauses_its_lane_and_waiting_jobs_are_given_back() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    (0..5).for_each(|number| drop(lane.push(now, job(number, now))));
    lane.worker_started();
    lane.next(now);
    let back = lane.ended(now, Signal::Refused("421 4.7.0 slow down".into()));
    assert_eq!(back.len(), 4);
    assert_eq!(lane.pause().unwrap().until, now + 30 * SECOND);
    assert_eq!(lane.window(now), 0);
    assert!(lane.push(now, job(9, now)).is_err());
    assert!(matches!(lane.next(now), Next::Exit));
    // Attempts in progress get the same reply; it counts once.
    lane.ended(now, Signal::Refused("421 4.7.0 slow down".into()));
    assert_eq!(lane.pause().unwrap().until, now + 30 * SECOND);
    assert_eq!(lane.next_tick(), Some(now + 30 * SECOND));

    let later = now + 30 * SECOND;
    assert!(lane.tick(later).is_empty());
    assert_eq!(lane.window(later), RECOVERY_WINDOW);
    assert!(lane.pause().is_none() && lane.push(later, job(10, later)).is_ok());
}

#[test]
fn d_053_a_fault_of_this_node_delays_its_lane_for_seconds_each_time() {
    let mut now = postroad_env::now();
    let mut lane = lane(now);
    for _ in 0..5 {
        drop(lane.push(now, job(1, now)));
        assert_eq!(lane.ended(now, Signal::Local("too many open files".into())).len(), 1);
        assert_eq!(lane.pause().unwrap().until, now + LOCAL_PAUSE);
        now += LOCAL_PAUSE;
        lane.tick(now);
        // Nothing was learned about the site.
        assert_eq!(lane.window(now), lane.open_window());
    }
}

#[test]
fn a_job_that_a_person_asked_for_ends_the_pause_of_its_lane() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    lane.ended(now, Signal::Refused("421 4.7.0 slow down".into()));
    assert!(lane.push(now, job(1, now)).is_err());
    let mut asked = job(2, now);
    asked.retry_now = true;
    assert!(matches!(lane.push(now, asked), Ok(Wake::New)));
    lane.worker_started();
    assert_eq!(started(lane.next(now)), Some(2));
}

#[test]
fn d_016_broken_ipv6_is_avoided_for_ten_minutes() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    assert!(!lane.avoids_ipv6(now));
    lane.avoid_ipv6(now);
    assert!(lane.avoids_ipv6(now + 599 * SECOND));
    assert!(!lane.avoids_ipv6(now + 600 * SECOND));
}

#[test]
fn d_062_a_lane_pauses_after_a_round_of_failures() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    lane.ended(now, Signal::Failed("connection refused".into()));
    assert!(lane.pause().is_none());
    lane.ended(now, Signal::Failed("connection refused".into()));
    assert_eq!(&*lane.pause().unwrap().reason, "connection refused");
}

#[test]
fn each_job_counts_in_the_rates_and_one_worker_waits_for_them() {
    let now = postroad_env::now();
    let mut lane = rated(now, 2, 60 * SECOND);
    (0..4).for_each(|number| drop(lane.push(now, job(number, now))));
    lane.worker_started();
    lane.worker_started();
    assert_eq!((started(lane.next(now)), started(lane.next(now))), (Some(0), Some(1)));
    let Next::Wait(Some(until)) = lane.next(now) else { panic!("the rate is used up") };
    assert!(until >= now + 60 * SECOND && until < now + 62 * SECOND);
    assert!(matches!(lane.next(now), Next::Exit));
    assert_eq!(lane.push(now, job(9, now)).unwrap(), Wake::None);
    lane.worker_woken();
    assert_eq!(started(lane.next(until)), Some(2));
}

#[test]
fn windows_follow_the_rates() {
    let check = |messages, secs, expected| {
        let rates = Arc::from([Rate { messages, per: Duration::from_secs(secs) }]);
        let limits = LaneLimits { rates, ..LaneLimits::default() };
        assert_eq!(window_of(&limits, 300 * SECOND), expected, "{messages} in {secs} s");
    };
    check(1, 1, 300);
    check(10, 1, 500);
    check(10, 86_400, 10);
    check(0, 60, 0);
    let none = LaneLimits { connections_max: 0, ..LaneLimits::default() };
    assert_eq!(window_of(&none, SECOND), 0);
    assert_eq!(window_of(&LaneLimits::default(), SECOND), 500);
}

#[test]
fn a_job_that_waits_too_long_is_given_back() {
    let now = postroad_env::now();
    let mut lane = rated(now, 0, SECOND);
    (0..2).for_each(|number| drop(lane.push(now, job(number, now))));
    lane.push(now, job(2, now + SECOND)).unwrap();
    // First their content is copied out of the frames.
    assert_eq!(lane.next_tick(), Some(now + COPY_AFTER));
    assert!(lane.tick(now + COPY_AFTER).is_empty());
    assert_eq!(lane.next_tick(), Some(now + SECOND + COPY_AFTER));
    assert!(lane.tick(now + 299 * SECOND).is_empty());
    assert_eq!(lane.next_tick(), Some(now + 300 * SECOND));
    let back: Vec<u128> = lane.tick(now + 300 * SECOND).iter().map(|job| job.message.as_u128()).collect();
    assert_eq!((back, lane.waiting()), (vec![0, 1], 1));
}

#[test]
fn a_recall_removes_only_recipients_that_have_not_started() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    (0..2).for_each(|number| drop(lane.push(now, job(number, now))));
    lane.worker_started();
    assert_eq!(started(lane.next(now)), Some(0));
    let id = MessageId::from_u128;
    assert!(!lane.recall(id(0), 0, 1));
    assert!(!lane.recall(id(1), 0, 2));
    assert!(lane.recall(id(1), 0, 1));
    assert_eq!(lane.waiting(), 1);
    assert!(lane.recall(id(1), 1, 1));
    assert_eq!(lane.waiting(), 0);
    assert!(!lane.recall(id(1), 1, 1));
}

#[test]
fn a_lane_is_forgotten_when_its_windows_are_empty() {
    let now = postroad_env::now();
    let day = 86_400 * SECOND;
    let mut lane = rated(now, 10, day);
    lane.push(now, job(0, now)).unwrap();
    lane.worker_started();
    lane.next(now);
    assert!(!lane.is_forgettable(now + 2 * day));
    lane.begin_exit();
    lane.worker_exited();
    assert!(!lane.is_forgettable(now + day));
    assert!(lane.is_forgettable(now + 2 * day));
    assert_eq!(lane.next_tick(), Some(now + day + day / 60));
}

#[test]
fn a_closed_lane_accepts_and_starts_no_job() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    (0..3).for_each(|number| drop(lane.push(now, job(number, now))));
    assert_eq!(lane.close().len(), 3);
    assert!(lane.push(now, job(4, now)).is_err());
    lane.worker_started();
    assert!(matches!(lane.next(now), Next::Exit));
    assert_eq!((lane.window(now), lane.wake(now)), (0, Wake::None));
    assert!(!lane.try_count_transaction(now), "no further transaction of a job in progress");
    lane.reopen();
    assert_eq!(lane.window(now), 500);
}

#[test]
fn workers_above_a_lowered_limit_exit() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    (0..3).for_each(|number| drop(lane.push(now, job(number, now))));
    lane.worker_started();
    lane.worker_started();
    lane.set_limits(LaneLimits { connections_max: 1, ..LaneLimits::default() });
    assert!(matches!(lane.next(now), Next::Exit));
    assert!(started(lane.next(now)).is_some());
}

#[test]
fn a_suspended_lane_gives_its_jobs_back_and_starts_nothing_until_it_is_resumed() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    (0..4).for_each(|number| drop(lane.push(now, job(number, now))));
    (0..2).for_each(|_| lane.worker_started());
    assert_eq!((started(lane.next(now)), started(lane.next(now))), (Some(0), Some(1)));
    assert_eq!(lane.set_suspended(true).len(), 2);
    assert_eq!(lane.window(now), 0);
    let mut asked = job(9, now);
    asked.retry_now = true;
    assert!(lane.push(now, asked).is_err(), "a person who asks for a retry does not resume it");
    assert!(!lane.try_count_transaction(now));
    // What was under way has ended.
    for _ in 0..2 {
        assert!(lane.ended(now, Signal::Served).is_empty());
        assert!(matches!(lane.next(now), Next::Exit));
        lane.worker_exited();
    }
    assert!(lane.set_suspended(false).is_empty());
    assert_eq!(lane.window(now), lane.open_window());
    assert_ne!(lane.push(now, job(10, now)).unwrap(), Wake::None);
}

#[test]
fn a_pause_goes_on_while_its_lane_is_suspended() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    lane.ended(now, Signal::Refused("421 4.7.0 slow down".into()));
    lane.set_suspended(true);
    let mut asked = job(1, now);
    asked.retry_now = true;
    assert!(lane.push(now, asked).is_err());
    lane.set_suspended(false);
    assert_eq!(lane.pause().map(|pause| pause.until), Some(now + 30 * SECOND));
}

#[test]
fn jobs_are_removed_by_what_they_are_and_the_others_keep_their_order_and_copies() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    (0..6).for_each(|number| drop(lane.push(now, job(number, now))));
    lane.tick(now + COPY_AFTER);
    assert_eq!(lane.copied, 6);
    (6..8).for_each(|number| drop(lane.push(now, job(number, now + 2 * COPY_AFTER))));
    let odd = |job: &Job| job.message.as_u128() % 2 == 1;
    let removed: Vec<u128> = lane.remove_jobs(odd).iter().map(|job| job.message.as_u128()).collect();
    assert_eq!(removed, [1, 3, 5, 7]);
    let left: Vec<u128> = lane.jobs.iter().map(|job| job.message.as_u128()).collect();
    assert_eq!((left, lane.copied), (vec![0, 2, 4, 6], 3));
}

#[test]
fn what_is_observed_says_why_and_until_when_nothing_starts() {
    let now = postroad_env::now();
    let mut lane = rated(now, 1, 60 * SECOND);
    assert_eq!(lane.observe(now).rate, RateReady::Now);
    drop(lane.push(now, job(1, now)));
    drop(lane.push(now, job(2, now)));
    lane.worker_started();
    lane.next(now);
    let seen = lane.observe(now + SECOND);
    assert_eq!((seen.connections, seen.waiting, &seen.pause), (2, 1, &None));
    let RateReady::At(at) = seen.rate else { panic!("{seen:?}") };
    assert!(at >= now + 59 * SECOND && at <= now + 62 * SECOND);
    assert_eq!(lane.observe(now + 2 * SECOND).rate, RateReady::At(at), "it does not change by itself");
    lane.ended(now, Signal::Refused("421 busy".into()));
    assert_eq!(lane.observe(now).pause.map(|pause| pause.until), Some(now + 30 * SECOND));
    assert_eq!(lane.observe(now + 31 * SECOND).pause, None);
    assert_eq!(rated(now, 0, SECOND).observe(now).rate, RateReady::Never);
}

#[test]
fn a_connection_that_is_taken_makes_no_worker_exit_and_counts_towards_the_limit() {
    let now = postroad_env::now();
    let mut lane = lane(now);
    // A lane that recovers has one worker.
    lane.ended(now, Signal::Refused("421 busy".into()));
    let later = now + 31 * SECOND;
    lane.tick(later);
    (0..3).for_each(|number| drop(lane.push(later, job(number, later))));
    lane.worker_started();
    assert_eq!((started(lane.next(later)), lane.workers, lane.workers_max()), (Some(0), 1, 1));
    assert!(lane.take_connection());
    assert_eq!(lane.observe(later).connections, 2);
    assert_eq!(started(lane.next(later)), Some(1), "the worker goes on");
    lane.return_connection();

    lane.set_limits(LaneLimits { connections_max: 1, ..LaneLimits::default() });
    assert!(!lane.take_connection(), "the worker has the only connection");
    lane.begin_exit();
    lane.worker_exited();
    assert!(lane.take_connection());
    assert_eq!(lane.wake(later), Wake::None, "the only connection is taken");
    assert!(lane.is_connected() && !lane.is_forgettable(later + 86_400 * SECOND));
    lane.return_connection();
    assert_eq!(lane.wake(later), Wake::New);
}
