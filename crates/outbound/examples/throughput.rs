//! The CPU cost of a message in an outbound node: 8 KiB each, one lane of 20 connections, from a fake queue to a fast receiver.
//!
//! `cargo run --release -p postroad-outbound --example throughput -- [MESSAGES]`
//!
//! The node runs on its own threads, so that its CPU time can be separated from that of queue and receiver.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people at a terminal")]

#[path = "../tests/outbound/node.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, reason = "tests use the rest")]
mod node;
#[path = "../tests/outbound/queue.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, reason = "tests use the rest")]
mod queue;

use std::{fs, time::Duration};

use bytes::Bytes;
use postroad_directory::Caps;
use postroad_testkit::{Script, Sink, SinkConfig};
use tokio::{
    runtime::{Builder, Runtime},
    time,
};

const NODE_THREADS: &str = "node-under-test";
const FRAME_MESSAGES: u128 = 64;
/// The node's window for the lane.
const IN_PROGRESS_MAX: u128 = 500;

fn main() {
    let messages: u128 = std::env::args().nth(1).map_or(50_000, |count| count.parse().unwrap());
    let (others, node_runtime) = (runtime("others"), runtime(NODE_THREADS));
    others.block_on(run(messages, &node_runtime));
}

async fn run(messages: u128, node_runtime: &Runtime) {
    let directory = tempfile::tempdir().unwrap();
    let ledger_file = Some(directory.path().join("ledger"));
    let sink = Sink::start(SinkConfig { script: Script::default(), ledger_file, ..SinkConfig::default() });
    let sink = sink.await.unwrap();
    let caps = Caps { messages_per_connection_max: Some(1000), ..Caps::default() };
    let runtime = node_runtime.handle().clone();
    let node = node::Setup { caps, runtime, ..node::Setup::default() }.start_routed(&sink).await;
    let (cpu, started) = (cpu_seconds(), postroad_env::now());
    feed(&node, messages).await;
    let all = |seen: &queue::Seen| (seen.reports.len() as u128 >= messages).then_some(seen.report_frames);
    let frames = node.queue.until("all reports", all).await;
    let (cpu, elapsed) = (cpu_seconds() - cpu, postroad_env::since(started).as_secs_f64());
    println!(
        "{messages} messages in {elapsed:.2} s: {:.0}/s, {:.1} µs of CPU each, {:.1} reports in a frame, {} received",
        messages as f64 / elapsed,
        cpu / messages as f64 * 1e6,
        messages as f64 / frames as f64,
        sink.ledger().count(),
    );
    node.stop().await;
}

async fn feed(node: &node::Node, messages: u128) {
    let content = content();
    let one = |message| {
        let one = queue::assignment(message, node::SOURCE, node.epoch, "example.test", &["a@example.test"]);
        postroad_proto::queue::Assignment { content: content.clone(), ..one }
    };
    let mut sent = 0;
    while sent < messages {
        while sent + FRAME_MESSAGES > node.queue.seen(|seen| seen.reports.len()) as u128 + IN_PROGRESS_MAX {
            time::sleep(Duration::from_micros(200)).await;
        }
        let next = messages.min(sent + FRAME_MESSAGES);
        node.queue.assign((sent..next).map(one).collect()).await;
        sent = next;
    }
}

fn content() -> Bytes {
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab\r\n";
    Bytes::from(format!("Subject: throughput\r\n\r\n{}", line.repeat(8192 / line.len())))
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().unwrap()
}

/// Returns the CPU time of the node's threads so far.
fn cpu_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut ticks = 0.0;
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((name, fields)) = stat.split_once(") ") else { continue };
        if name.ends_with(NODE_THREADS) {
            // proc(5): user and system time are the 14th and 15th field of all, the third being the first here.
            let fields: Vec<&str> = fields.split(' ').collect();
            ticks += fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        }
    }
    ticks / TICKS_PER_SECOND
}
