//! Queue and Raft: who leads, how far followers are behind, what waits, and whether control reads the events.

use super::{alert, query, reading};
use crate::dashboard::{Dashboard, Fault, Kind, Moved, NODE, Panel, Row, Unit};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    uid: "postroad-queue",
    title: "Postroad / Queue and Raft",
    description: "Who leads, how far followers are behind, what waits, and whether control reads the events.",
    variables: &[NODE],
    rows: &[
        Row {
            title: "Raft",
            panels: &[
                Panel {
                    title: "Groups led",
                    description: "How many groups each queue node leads; the sum is the number of groups, the directory among them.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query("sum by (node) (postroad_queue_leading{NODE})", "{{node}}")],
                    runbook: alert("postroadnoleader"),
                    moved_by: Moved::Down(Fault::LeaderKilled),
                },
                Panel {
                    title: "Terms",
                    description: "The term of each group: it rises with every election.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query("max by (group) (postroad_queue_term{NODE})", "group {{group}}")],
                    runbook: alert("postroadleaderchanges"),
                    moved_by: Moved::Up(Fault::LeaderKilled),
                },
                Panel {
                    title: "Voters that answer",
                    description: "The least over all groups. With fewer than a majority nothing is accepted.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query(
                            "min(max by (cluster, namespace, group) (postroad_queue_voters_answering{NODE}))",
                            "answering",
                        ),
                        query("max(postroad_queue_voters{NODE})", "voters"),
                    ],
                    runbook: alert("postroadquorumatrisk"),
                    moved_by: Moved::Down(Fault::FollowerKilled),
                },
                Panel {
                    title: "Followers behind",
                    description: "Bytes of the log that each follower has not confirmed.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[query(
                        "sum by (follower) (postroad_queue_follower_behind_bytes{NODE})",
                        "queue node {{follower}}",
                    )],
                    runbook: alert("postroadreplicationbehind"),
                    moved_by: Moved::Up(Fault::FollowerHangs),
                },
                Panel {
                    title: "Time to commit",
                    description: "From proposing an entry to having applied it.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query(
                            "histogram_quantile(0.5, sum by (le) (rate(postroad_queue_commit_seconds_bucket{NODE}[RATE])))",
                            "half",
                        ),
                        query(
                            "histogram_quantile(0.99, sum by (le) (rate(postroad_queue_commit_seconds_bucket{NODE}[RATE])))",
                            "99 %",
                        ),
                    ],
                    runbook: alert("postroadsyncslow"),
                    moved_by: Moved::Up(Fault::DiskSlow),
                },
                Panel {
                    title: "Entries",
                    description: "Entries applied in each group. Under load one entry carries many commands.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "max by (group) (deriv(postroad_queue_applied_index{NODE}[RATE]))",
                        "group {{group}}",
                    )],
                    runbook: reading("queue-and-raft"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Commands for each entry",
                    description: "The mean: higher under load, since one commit carries all that came during the one before.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum(rate(postroad_queue_entry_commands_sum{NODE}[RATE])) / (sum(rate(postroad_queue_entry_commands_count{NODE}[RATE])) > 0)",
                        "commands",
                    )],
                    runbook: reading("queue-and-raft"),
                    moved_by: Moved::Up(Fault::Load),
                },
            ],
        },
        Row {
            title: "Mail",
            panels: &[
                Panel {
                    title: "Submissions",
                    description: "What the queue answered ingress, by result.",
                    kind: Kind::Stack,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (result) (rate(postroad_queue_submissions_total{NODE}[RATE]))",
                        "{{result}}",
                    )],
                    runbook: alert("postroadmailrefused"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Deliveries",
                    description: "By state; one replica of each group counts.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query(
                        "sum by (state) (max by (cluster, namespace, group, state) (postroad_queue_deliveries{NODE}))",
                        "{{state}}",
                    )],
                    runbook: alert("postroadqueuegrows"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Messages",
                    description: "Messages that have not ended, by group.",
                    kind: Kind::Stack,
                    unit: Unit::Count,
                    queries: &[query("max by (group) (postroad_queue_messages{NODE})", "group {{group}}")],
                    runbook: alert("postroadqueuegrows"),
                    moved_by: Moved::Up(Fault::OutboundKilled),
                },
                Panel {
                    title: "Due and waiting",
                    description: "Deliveries that are due and wait for a lane with room, by pool, and in all.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query("sum by (pool) (postroad_queue_pool_ready_deliveries{NODE})", "pool {{pool}}"),
                        query("sum(postroad_queue_ready_deliveries{NODE})", "all"),
                    ],
                    runbook: alert("postroadqueuewaits"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Age",
                    description: "The age of the oldest message that has not ended, and the longest wait for a lane.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[
                        query("max(postroad_queue_oldest_message_seconds{NODE})", "oldest message"),
                        query("max(postroad_queue_longest_wait_seconds{NODE})", "longest wait for a lane"),
                    ],
                    runbook: alert("postroadqueuewaits"),
                    moved_by: Moved::Up(Fault::SiteSlow),
                },
                Panel {
                    title: "Assigned and reported",
                    description: "Deliveries given to outbound nodes, and outcomes that came back.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query("sum(rate(postroad_queue_assigned_total{NODE}[RATE]))", "assigned"),
                        query(
                            "sum by (outcome) (rate(postroad_queue_reports_total{NODE}[RATE]))",
                            "{{outcome}}",
                        ),
                    ],
                    runbook: reading("queue-and-raft"),
                    moved_by: Moved::Up(Fault::SiteDefers),
                },
                Panel {
                    title: "Waiting to be committed",
                    description: "Bytes of submissions at the leaders; `queue.waiting_bytes_max` bounds them for each group.",
                    kind: Kind::Lines,
                    unit: Unit::Bytes,
                    queries: &[query(
                        "sum by (group) (postroad_queue_waiting_bytes{NODE})",
                        "group {{group}}",
                    )],
                    runbook: alert("postroadsyncslow"),
                    moved_by: Moved::Up(Fault::DiskSlow),
                },
                Panel {
                    title: "Unusual ends",
                    description: "Attempts ended as unknown because a source changed its node, deliveries stopped because a receiver never confirms, bodies that were unreadable, and reports of lanes that were dropped because they are malformed or a node has too many.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query("sum(rate(postroad_queue_reclaims_total{NODE}[RATE]))", "sources reclaimed"),
                        query("sum(rate(postroad_queue_unconfirmed_total{NODE}[RATE]))", "never confirmed"),
                        query(
                            "sum(rate(postroad_queue_unreadable_contents_total{NODE}[RATE]))",
                            "unreadable",
                        ),
                        query(
                            "sum by (cause) (rate(postroad_queue_lane_reports_dropped_total{NODE}[RATE]))",
                            "lane reports dropped: {{cause}}",
                        ),
                    ],
                    runbook: alert("postroadcontentunreadable"),
                    moved_by: Moved::Up(Fault::NodeRestarts),
                },
            ],
        },
        Row {
            title: "Outbound nodes, as the queue sees them",
            panels: &[
                Panel {
                    title: "Connected",
                    description: "Outbound nodes that are connected to the leader of each group.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query("max by (group) (postroad_queue_sessions{NODE})", "group {{group}}")],
                    runbook: alert("postroadnooutbound"),
                    moved_by: Moved::Down(Fault::OutboundKilled),
                },
                Panel {
                    title: "Sources without an owner",
                    description: "Mail of their pools waits when no other source of the pool has an owner.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query("max(postroad_queue_sources_unowned{NODE})", "sources")],
                    runbook: alert("postroadsourcesunowned"),
                    moved_by: Moved::Up(Fault::OutboundKilled),
                },
                Panel {
                    title: "Leases",
                    description: "Decisions of the leader of the directory.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[query(
                        "sum by (decision) (rate(postroad_queue_lease_decisions_total{NODE}[RATE]))",
                        "{{decision}}",
                    )],
                    runbook: alert("postroadsourcesunowned"),
                    moved_by: Moved::Up(Fault::OutboundKilled),
                },
                Panel {
                    title: "Directory",
                    description: "The revision that each queue node has applied, how many processes watch it there, which nodes have announced themselves, and what operators have suspended.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query("postroad_queue_directory_revision{NODE}", "revision at {{node}}"),
                        query("postroad_queue_directory_watches{NODE}", "watches at {{node}}"),
                        query("max by (role) (postroad_queue_announced_nodes{NODE})", "{{role}} nodes"),
                        query("max by (scope) (postroad_queue_suspensions{NODE})", "suspended: {{scope}}"),
                        query(
                            "sum(increase(postroad_queue_suspensions_full_total{NODE}[RATE]))",
                            "refused: too many suspensions",
                        ),
                        query(
                            "sum(increase(postroad_queue_announcements_refused_total{NODE}[RATE]))",
                            "refused: too many nodes",
                        ),
                    ],
                    runbook: reading("queue-and-raft"),
                    moved_by: Moved::Down(Fault::OutboundKilled),
                },
            ],
        },
        Row {
            title: "Events and control",
            panels: &[
                Panel {
                    title: "Events unread",
                    description: "Events that control has not read, by group; and those that it knows of and has not written.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query("max by (group) (postroad_queue_unread_events{NODE})", "group {{group}}"),
                        query(
                            "sum by (group) (postroad_control_lag_events{SCOPE})",
                            "group {{group}}, as control sees it",
                        ),
                    ],
                    runbook: alert("postroadcontrolbehind"),
                    moved_by: Moved::Up(Fault::ControlHangs),
                },
                Panel {
                    title: "Room for events",
                    description: "Unread events as a share of `queue.event_bytes_max`; when it is full the oldest are dropped.",
                    kind: Kind::Lines,
                    unit: Unit::Share,
                    queries: &[query(
                        "max by (group) (postroad_queue_event_fill_ratio{NODE})",
                        "group {{group}}",
                    )],
                    runbook: alert("postroadeventsunread"),
                    moved_by: Moved::Up(Fault::ControlHangs),
                },
                Panel {
                    title: "Events written",
                    description: "By control into its database, and those that came again, were not understood, or were lost.",
                    kind: Kind::Lines,
                    unit: Unit::PerSecond,
                    queries: &[
                        query("sum(rate(postroad_control_events_total{SCOPE}[RATE]))", "written"),
                        query("sum(rate(postroad_control_repeated_events_total{SCOPE}[RATE]))", "repeated"),
                        query(
                            "sum(rate(postroad_control_unreadable_events_total{SCOPE}[RATE]))",
                            "not understood",
                        ),
                        query("sum(rate(postroad_control_lost_events_total{SCOPE}[RATE]))", "lost"),
                    ],
                    runbook: alert("postroadcontrolbehind"),
                    moved_by: Moved::Down(Fault::ControlHangs),
                },
                Panel {
                    title: "Transactions of control",
                    description: "Time of one transaction with its sync, and transactions that failed.",
                    kind: Kind::Lines,
                    unit: Unit::Seconds,
                    queries: &[query(
                        "histogram_quantile(0.95, sum by (le) (rate(postroad_control_batch_seconds_bucket{SCOPE}[RATE])))",
                        "95 %",
                    )],
                    runbook: alert("postroadhistorynotwritten"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "Events for each transaction",
                    description: "The mean.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[
                        query(
                            "sum(rate(postroad_control_batch_events_sum{SCOPE}[RATE])) / (sum(rate(postroad_control_batch_events_count{SCOPE}[RATE])) > 0)",
                            "events",
                        ),
                        query(
                            "sum(rate(postroad_control_write_failures_total{SCOPE}[RATE]))",
                            "failures per second",
                        ),
                    ],
                    runbook: alert("postroadhistorynotwritten"),
                    moved_by: Moved::Up(Fault::Load),
                },
                Panel {
                    title: "History",
                    description: "Messages that control keeps.",
                    kind: Kind::Lines,
                    unit: Unit::Count,
                    queries: &[query("max(postroad_control_messages{SCOPE})", "messages")],
                    runbook: alert("postroadcontrolbehind"),
                    moved_by: Moved::Up(Fault::Load),
                },
            ],
        },
    ],
};
