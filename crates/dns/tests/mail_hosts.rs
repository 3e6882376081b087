//! Tests the rules of RFC 5321 5.1 and RFC 7505 against a scripted name server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fake;

use std::{net::IpAddr, time::Duration};

use fake::{Answer, FakeDns, Zone, a, aaaa, alias, mx, ptr};
use hickory_resolver::proto::{op::ResponseCode, rr::RecordType};
use postroad_core::Domain;
use postroad_dns::{DnsError, MailHosts, Resolver};

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

async fn ask(zone: Zone, name: &str) -> Result<MailHosts, DnsError> {
    let server = FakeDns::start(zone).await;
    Resolver::at(server.address).mail_hosts(&domain(name)).await
}

/// Compares the hosts in the form `name/preference=addresses`.
async fn check(zone: impl Into<Zone>, name: &str, expected: Result<&[&str], DnsError>) {
    let answer = ask(zone.into(), name).await;
    let hosts_found = answer.map(|found| {
        let host = |host: &postroad_dns::MailHost| {
            let addresses: Vec<String> = host.addresses.iter().map(IpAddr::to_string).collect();
            format!("{}/{}={}", host.name, host.preference, addresses.join(","))
        };
        found.hosts.iter().map(host).collect::<Vec<_>>()
    });
    let expected = expected.map(|hosts| hosts.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(hosts_found, expected, "{name}");
}

#[tokio::test]
async fn d_010_hosts_are_ordered_by_preference() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(20, "b.example.net"), (10, "a.example.net")])),
        (("a.example.net", RecordType::A), a(&[[192, 0, 2, 1]])),
        (("a.example.net", RecordType::AAAA), aaaa("2001:db8::1")),
        (("b.example.net", RecordType::A), a(&[[192, 0, 2, 2]])),
    ];
    let hosts: &[&str] = &["a.example.net/10=2001:db8::1,192.0.2.1", "b.example.net/20=192.0.2.2"];
    check(zone, "example.org", Ok(hosts)).await;
}

#[tokio::test]
async fn d_011_without_mx_the_domain_is_its_own_mail_host() {
    let zone = [(("example.org", RecordType::A), a(&[[192, 0, 2, 1]]))];
    check(zone.clone(), "example.org", Ok(&["example.org/0=192.0.2.1"])).await;
    assert!(ask(zone.into(), "example.org").await.unwrap().implicit);
    check([(("example.org", RecordType::TXT), a(&[]))], "example.org", Err(DnsError::NoMailHost)).await;
    check([], "example.org", Err(DnsError::NoSuchDomain)).await;
}

#[tokio::test]
async fn d_011_a_failing_name_server_is_not_nxdomain() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let zone = [
            (("example.org", RecordType::MX), Answer::Failure(code)),
            (("example.org", RecordType::A), a(&[[192, 0, 2, 1]])),
        ];
        let error = ask(zone.into(), "example.org").await.unwrap_err();
        assert!(
            matches!(error, DnsError::Temporary(_)) && !error.is_permanent() && error.is_ours(),
            "{error:?}"
        );
    }
    // Without MX, a failed address lookup is temporary too.
    let zone = [
        (("example.org", RecordType::TXT), a(&[])),
        (("example.org", RecordType::A), Answer::Failure(ResponseCode::ServFail)),
    ];
    assert!(!ask(zone.into(), "example.org").await.unwrap_err().is_permanent());
}

#[tokio::test]
async fn d_012_a_domain_with_a_null_mx_accepts_no_mail() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(0, "")])),
        (("example.org", RecordType::A), a(&[[192, 0, 2, 1]])),
    ];
    check(zone, "example.org", Err(DnsError::NullMx)).await;
    assert_eq!(DnsError::NullMx.codes().0, 556);
}

#[tokio::test]
async fn d_013_hosts_without_an_address_are_skipped() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(10, "gone.example.net"), (20, "b.example.net")])),
        (("b.example.net", RecordType::A), a(&[[192, 0, 2, 2]])),
    ];
    check(zone, "example.org", Ok(&["b.example.net/20=192.0.2.2"])).await;
    let zone = [(("example.org", RecordType::MX), mx(&[(10, "gone.example.net")]))];
    check(zone, "example.org", Err(DnsError::NoAddress)).await;
    assert!(!DnsError::NoAddress.is_permanent());
}

#[tokio::test]
async fn d_013_targets_that_are_addresses_or_local_names_are_refused() {
    let zone = [(("example.org", RecordType::MX), mx(&[(10, "localhost"), (20, "192.0.2.1"), (30, "mail")]))];
    check(zone, "example.org", Err(DnsError::BadTarget)).await;
}

#[tokio::test]
async fn d_013_names_in_answers_are_bytes() {
    let zone = [
        (("ab--cd.example", RecordType::MX), mx(&[(10, "Mail_1.example.net"), (20, "r3---mx.example.net")])),
        (("mail_1.example.net", RecordType::A), a(&[[192, 0, 2, 1]])),
        (("r3---mx.example.net", RecordType::A), a(&[[192, 0, 2, 2]])),
    ];
    let hosts: &[&str] = &["mail_1.example.net/10=192.0.2.1", "r3---mx.example.net/20=192.0.2.2"];
    check(zone, "ab--cd.example", Ok(hosts)).await;
}

#[tokio::test]
async fn s_211_names_in_other_scripts_are_asked_for_and_found_by_their_a_labels() {
    let zone = [
        (("xn--bcher-kva.example", RecordType::MX), mx(&[(10, "mx.xn--mller-kva.example")])),
        (("mx.xn--mller-kva.example", RecordType::A), a(&[[192, 0, 2, 1]])),
    ];
    for name in ["b\u{fc}cher.example", "B\u{dc}CHER.example", "xn--bcher-kva.example"] {
        check(zone.clone(), name, Ok(&["mx.xn--mller-kva.example/10=192.0.2.1"])).await;
    }
}

#[tokio::test]
async fn d_013_a_cname_target_is_followed() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(10, "mx.example.org")])),
        (("mx.example.org", RecordType::A), alias(&["real.example.net"], [192, 0, 2, 7])),
    ];
    check(zone, "example.org", Ok(&["mx.example.org/10=192.0.2.7"])).await;
}

#[tokio::test]
async fn d_017_a_huge_answer_is_fetched_over_tcp_and_truncated() {
    let names: Vec<String> = (0..1500).map(|n| format!("mx{n}.example.net")).collect();
    let hosts: Vec<(u16, &str)> = names.iter().map(|name| (10, name.as_str())).collect();
    let zone: Zone = [
        (("example.org", RecordType::MX), mx(&hosts)),
        (("mx1.example.net", RecordType::A), a(&[[192, 0, 2, 1]])),
    ]
    .into();
    let server = FakeDns::start(zone).await;
    let resolver = Resolver::at(server.address);
    // Ten random hosts are resolved: mx1 is among them or not.
    let answer =
        tokio::time::timeout(Duration::from_secs(60), resolver.mail_hosts(&domain("example.org"))).await;
    match answer.expect("bounded") {
        Ok(found) => assert_eq!(found.hosts.len(), 1),
        Err(error) => assert_eq!(error, DnsError::NoAddress),
    }
}

#[tokio::test]
async fn d_017_a_cname_loop_ends() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(10, "a.example.net")])),
        (
            ("a.example.net", RecordType::A),
            alias(&["b.example.net", "a.example.net", "b.example.net"], [0; 4]),
        ),
    ];
    let answer = tokio::time::timeout(Duration::from_secs(60), ask(zone.into(), "example.org")).await;
    drop(answer.expect("bounded"));
}

#[tokio::test]
async fn a_host_whose_lookup_times_out_does_not_block_the_others() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(10, "silent.example.net"), (20, "b.example.net")])),
        (("silent.example.net", RecordType::A), Answer::NoReply),
        (("silent.example.net", RecordType::AAAA), Answer::NoReply),
        (("b.example.net", RecordType::A), a(&[[192, 0, 2, 2]])),
    ];
    let answer = tokio::time::timeout(Duration::from_secs(60), ask(zone.into(), "example.org")).await;
    assert_eq!(answer.expect("soon").unwrap().hosts.len(), 1);
}

#[tokio::test]
async fn a_domain_whose_lookup_times_out_is_its_own_site() {
    let zone = [
        (("example.org", RecordType::MX), mx(&[(10, "a.mx.example.net"), (10, "b.mx.example.net")])),
        (("other.example", RecordType::MX), mx(&[(10, "a.mx.example.net")])),
        (("plain.example", RecordType::A), a(&[[192, 0, 2, 1]])),
        (("silent.example", RecordType::MX), Answer::NoReply),
    ];
    let server = FakeDns::start(zone.into()).await;
    let resolver = Resolver::at(server.address);
    for (name, site) in [
        ("example.org", "example.net"),
        ("other.example", "example.net"),
        ("plain.example", "plain.example"),
        ("missing.example", "missing.example"),
        ("silent.example", "silent.example"),
    ] {
        for _ in 0..2 {
            assert_eq!(&*resolver.site(&domain(name), Duration::from_millis(300)).await, site);
        }
    }
    // A failed lookup is cached too.
    let silent = domain("silent.example");
    let again = resolver.site(&silent, Duration::from_secs(60));
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("from the cache");
}

#[tokio::test]
async fn a_configured_host_may_be_an_address() {
    let zone = [(("relay.example", RecordType::A), a(&[[192, 0, 2, 9]]))];
    let server = FakeDns::start(zone.into()).await;
    let resolver = Resolver::at(server.address);
    for (host, expected) in
        [("192.0.2.1", "192.0.2.1"), ("localhost", "127.0.0.1"), ("relay.example", "192.0.2.9")]
    {
        assert_eq!(resolver.addresses(host).await.unwrap(), [expected.parse::<IpAddr>().unwrap()]);
    }
    assert_eq!(resolver.addresses("missing.example").await, Err(DnsError::NoAddress));
}

#[tokio::test]
async fn an_address_has_the_names_that_its_ptr_records_say() {
    let zone = [
        (("7.2.0.192.in-addr.arpa", RecordType::PTR), ptr(&["Mail.Example.org", "other.example.org"])),
        (("8.2.0.192.in-addr.arpa", RecordType::TXT), a(&[])),
        (("9.2.0.192.in-addr.arpa", RecordType::PTR), Answer::Failure(ResponseCode::ServFail)),
    ];
    let server = FakeDns::start(zone.into()).await;
    let resolver = Resolver::at(server.address);
    let names = async |last: u8| resolver.names(IpAddr::from([192, 0, 2, last])).await;
    assert_eq!(names(7).await.unwrap(), ["mail.example.org", "other.example.org"]);
    assert_eq!(names(8).await.unwrap(), [""; 0], "it has no such record");
    assert_eq!(names(10).await.unwrap(), [""; 0], "it does not exist");
    assert!(names(9).await.unwrap_err().is_ours(), "nobody knows");
}
