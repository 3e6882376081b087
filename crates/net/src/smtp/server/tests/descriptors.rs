//! Running out of file descriptors, tested in a child process.

use std::{
    fs::File,
    io::{Read, Seek},
};

use super::*;
use crate::testing::run_with_few_descriptors;

const CHILD: &str = "smtp::server::tests::descriptors::child_process_without_file_descriptors";

#[test]
fn s_033_and_r_37_without_file_descriptors_accepting_does_not_spin_and_recovers() {
    run_with_few_descriptors(CHILD);
}

/// User and system time of this process in ticks of 10 ms.
fn cpu_ticks(stat: &mut File) -> u64 {
    let mut text = String::new();
    stat.rewind().unwrap();
    stat.read_to_string(&mut text).unwrap();
    let after_name = text.rsplit(") ").next().unwrap();
    after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
#[ignore = "run by the test above, with few descriptors"]
async fn child_process_without_file_descriptors() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut stat = File::open("/proc/self/stat").unwrap();
    // The kernel queues connections in the backlog even when we cannot accept them.
    let mut clients = Vec::new();
    while let Ok(client) = std::net::TcpStream::connect(server.address) {
        client.set_nonblocking(true).unwrap();
        clients.push(client);
        time::sleep(Duration::from_millis(1)).await;
    }
    assert!(clients.len() > 5, "both ends of a connection take a descriptor");
    let before = cpu_ticks(&mut stat);
    time::sleep(Duration::from_secs(1)).await;
    let used = cpu_ticks(&mut stat) - before;
    assert!(used < 20, "waiting for file descriptors used {used} ticks of CPU in a second");
    clients.clear();
    let mut reply = String::new();
    while !reply.starts_with("220 ") {
        time::sleep(Duration::from_millis(10)).await;
        reply = Raw::connect(server.address).await.reply().await;
    }
    server.stop().await;
}
