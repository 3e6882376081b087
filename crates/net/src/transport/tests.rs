use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use postroad_core::{ClusterId, NodeId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    authority::{AuthorityError, ClusterAuthority, NodeCertificate},
    identity::Role,
    testing::PATIENCE,
};

mod http2;

const CLUSTER: ClusterId = ClusterId(7);

fn node(authority: &ClusterAuthority, role: Role, node: u64) -> NodeTls {
    with(authority, &authority.issue(role, NodeId(node), &[]).unwrap())
}

fn with(authority: &ClusterAuthority, certificate: &NodeCertificate) -> NodeTls {
    let NodeCertificate { certificate_pem, key_pem } = certificate;
    NodeTls::from_pem(authority.certificate_pem().as_bytes(), certificate_pem.as_bytes(), key_pem.as_bytes())
        .unwrap()
}

/// Connects and sends a word each way; returns the client's identity as the server saw it.
async fn talk(server: &Transport, client: &Transport, expect: Expect) -> io::Result<Option<(Role, u64)>> {
    let mut listener = server.bind("127.0.0.1:0").await?;
    let address = listener.local_addr().to_owned();
    let serving = tokio::spawn(async move {
        let mut stream = listener.next().await.unwrap().unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
        stream.flush().await.unwrap();
        stream.peer().identity.map(|peer| (peer.role, peer.node.0))
    });
    let mut stream = client.connect(&address, expect).await?;
    stream.write_all(b"word").await?;
    stream.flush().await?;
    let mut word = [0; 4];
    let received = tokio::time::timeout(PATIENCE, stream.read_exact(&mut word)).await;
    match received.expect("an answer or the end of the connection") {
        Ok(_) if word == *b"word" => Ok(serving.await.unwrap()),
        received => {
            serving.abort();
            // A TLS alert is a failure too.
            received.and(Err(io::ErrorKind::InvalidData.into()))
        }
    }
}

#[tokio::test]
async fn every_transport_carries_bytes_both_ways() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let net = Transport::Memory(MemoryNet::new());
    let expect = Expect::node(Role::Queue, NodeId(1));
    assert_eq!(talk(&net, &net, expect).await.unwrap(), None);
    assert_eq!(talk(&Transport::Plain, &Transport::Plain, expect).await.unwrap(), None);
    let queue = Transport::Mutual(node(&authority, Role::Queue, 1));
    let outbound = Transport::Mutual(node(&authority, Role::Outbound, 9));
    assert_eq!(talk(&queue, &outbound, expect).await.unwrap(), Some((Role::Outbound, 9)));
    assert_eq!(talk(&queue, &outbound, Expect::any(Role::Queue)).await.unwrap(), Some((Role::Outbound, 9)));
}

#[tokio::test]
async fn c_171_a_connection_to_a_server_of_another_role_or_node_is_closed() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let queue = Transport::Mutual(node(&authority, Role::Queue, 1));
    let outbound = Transport::Mutual(node(&authority, Role::Outbound, 9));
    for expect in [Expect::any(Role::Control), Expect::node(Role::Queue, NodeId(2))] {
        assert!(talk(&queue, &outbound, expect).await.is_err(), "{expect:?}");
    }
}

#[tokio::test]
async fn r_26_a_node_of_another_cluster_or_authority_is_refused_on_either_end() {
    let ours = ClusterAuthority::generate(CLUSTER).unwrap();
    let namesake = ClusterAuthority::generate(CLUSTER).unwrap();
    let other = ClusterAuthority::generate(ClusterId(8)).unwrap();
    let transport = |tls| Transport::Mutual(tls);
    let expect = Expect::any(Role::Queue);
    for other_ca in [&namesake, &other] {
        let (queue, ingress) = (node(&ours, Role::Queue, 1), node(other_ca, Role::Ingress, 2));
        assert!(talk(&transport(queue), &transport(ingress), expect).await.is_err());
        let (queue, ingress) = (node(other_ca, Role::Queue, 1), node(&ours, Role::Ingress, 2));
        assert!(talk(&transport(queue), &transport(ingress), expect).await.is_err());
    }
    // A node that trusts the CAs of two clusters.
    let both = format!("{}{}", ours.certificate_pem(), other.certificate_pem());
    let trusting_both = |authority: &ClusterAuthority, role, number| {
        let certificate = authority.issue(role, NodeId(number), &[]).unwrap();
        let (pem, key) = (certificate.certificate_pem, certificate.key_pem);
        Transport::Mutual(NodeTls::from_pem(both.as_bytes(), pem.as_bytes(), key.as_bytes()).unwrap())
    };
    let queue = trusting_both(&ours, Role::Queue, 1);
    assert!(talk(&queue, &trusting_both(&ours, Role::Ingress, 2), expect).await.is_ok());
    assert!(talk(&queue, &trusting_both(&other, Role::Ingress, 2), expect).await.is_err());
    assert!(
        talk(&trusting_both(&other, Role::Queue, 1), &trusting_both(&ours, Role::Ingress, 2), expect)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn c_171_an_expired_certificate_is_refused_on_either_end() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let yesterday = postroad_env::wall().before(Duration::from_hours(24));
    let expired = |role| {
        let certificate = authority.issue_until(role, NodeId(1), &[], yesterday).unwrap();
        Transport::Mutual(with(&authority, &certificate))
    };
    let good = |role| Transport::Mutual(node(&authority, role, 2));
    let expect = Expect::any(Role::Queue);
    assert!(talk(&expired(Role::Queue), &good(Role::Ingress), expect).await.is_err());
    assert!(talk(&good(Role::Queue), &expired(Role::Ingress), expect).await.is_err());
    assert!(talk(&good(Role::Queue), &good(Role::Ingress), expect).await.is_ok());
}

#[tokio::test]
async fn c_171_plaintext_and_a_client_without_a_certificate_are_refused() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let queue = Transport::Mutual(node(&authority, Role::Queue, 1));
    assert!(talk(&queue, &Transport::Plain, Expect::any(Role::Queue)).await.is_err());
    let mut listener = queue.bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().parse().unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let connected = crate::tls::ClientTls::opportunistic().connector().connect(name, client).await;
    if let Ok(mut stream) = connected {
        assert!(stream.read_u8().await.is_err(), "the server has closed");
    }
    let accepted = tokio::time::timeout(Duration::from_millis(100), listener.next()).await;
    assert!(accepted.is_err(), "no connection without an identity is accepted");
}

#[tokio::test]
async fn c_172_a_silent_connection_does_not_delay_others() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let queue = Transport::Mutual(node(&authority, Role::Queue, 1));
    let mut listener = queue.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_owned();
    let _silent = [TcpStream::connect(&address).await.unwrap(), TcpStream::connect(&address).await.unwrap()];
    let ingress = Transport::Mutual(node(&authority, Role::Ingress, 2));
    let _stream = ingress.connect(&address, Expect::any(Role::Queue)).await.unwrap();
    let stream = tokio::time::timeout(PATIENCE, listener.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(stream.peer().identity.map(|peer| peer.node), Some(NodeId(2)));
}

#[tokio::test]
async fn s_407_a_renewed_certificate_is_used_for_new_connections() {
    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    std::fs::write(path("ca.pem"), authority.certificate_pem()).unwrap();
    let write = |node: u64| {
        let _ = (std::fs::remove_file(path("node.pem")), std::fs::remove_file(path("node.key")));
        let certificate = authority.issue(Role::Queue, NodeId(node), &[]).unwrap();
        certificate.write(&path("node.pem"), &path("node.key")).unwrap();
    };
    write(1);
    let tls = NodeTls::from_files(path("ca.pem"), path("node.pem"), path("node.key")).unwrap();
    let queue = Transport::Mutual(tls.clone());
    let ingress = Transport::Mutual(node(&authority, Role::Ingress, 9));
    assert!(talk(&queue, &ingress, Expect::node(Role::Queue, NodeId(1))).await.is_ok());
    assert!(!tls.reload().unwrap());
    write(2);
    assert!(tls.reload().unwrap());
    assert_eq!(tls.identity().node, NodeId(2));
    assert!(talk(&queue, &ingress, Expect::node(Role::Queue, NodeId(2))).await.is_ok());
    assert!(talk(&queue, &ingress, Expect::node(Role::Queue, NodeId(1))).await.is_err());
}

#[tokio::test]
async fn a_ca_can_be_loaded_from_its_files() {
    use std::os::unix::fs::PermissionsExt;

    let authority = ClusterAuthority::generate(CLUSTER).unwrap();
    let again = ClusterAuthority::from_pem(authority.certificate_pem(), &authority.key_pem()).unwrap();
    assert_eq!(again.cluster(), CLUSTER);
    let names = ["queue-0.example".to_owned(), "127.0.0.1".to_owned()];
    let certificate = again.issue(Role::Queue, NodeId(1), &names).unwrap();
    let queue = Transport::Mutual(with(&authority, &certificate));
    let ingress = Transport::Mutual(node(&authority, Role::Ingress, 2));
    assert!(talk(&queue, &ingress, Expect::any(Role::Queue)).await.is_ok());
    let not_an_authority = ClusterAuthority::from_pem(&certificate.certificate_pem, &certificate.key_pem);
    assert!(not_an_authority.is_err());
    let other = ClusterAuthority::generate(CLUSTER).unwrap();
    let error = ClusterAuthority::from_pem(authority.certificate_pem(), &other.key_pem()).unwrap_err();
    assert!(matches!(error, AuthorityError::OtherKey), "{error}");
    // While an authority is replaced, the one that signs may be either.
    let both = format!("{}{}", authority.certificate_pem(), other.certificate_pem());
    assert!(ClusterAuthority::from_pem(&both, &other.key_pem()).is_ok());

    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("node.key");
    certificate.write(&folder.path().join("node.pem"), &key).unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        certificate.write(&folder.path().join("other.pem"), &key).is_err(),
        "an existing key is not overwritten"
    );
    let (renewed, replaced) =
        (again.issue(Role::Queue, NodeId(1), &names).unwrap(), folder.path().join("new.pem"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    renewed.replace(&replaced, &key).unwrap();
    assert_eq!(std::fs::read_to_string(&key).unwrap(), renewed.key_pem);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        [mode(&key), mode(&replaced)],
        [0o640, 0o600],
        "the mode of the old file, else the owner's only"
    );
}

#[tokio::test]
async fn a_memory_name_can_be_reused_after_its_listener_is_dropped() {
    let net = Transport::Memory(MemoryNet::new());
    let expect = Expect::any(Role::Queue);
    assert!(net.connect("queue-1", expect).await.is_err());
    let listener = net.bind("queue-1").await.unwrap();
    assert_eq!(net.bind("queue-1").await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(net.connect("queue-1", expect).await.is_ok());
    drop(listener);
    assert!(net.connect("queue-1", expect).await.is_err());
    assert!(net.bind("queue-1").await.is_ok());
}
