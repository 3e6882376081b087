//! `postroad certificate list`: one line for each certificate, the one that ends first at the top.

use std::path::{Path, PathBuf};

use anyhow::Context;
use postroad_cluster::AnnouncedNode;
use postroad_core::Timestamp;
use postroad_net::{Certificate, KeyId};
use serde::Serialize;

use super::NodeFiles;
use crate::{
    cli::certificate::CertificateListArgs,
    nodes::{self, days_until},
    operator::Operator,
    output::{Column, Row, Screen, Shown, number, table, text},
};

pub(super) async fn run(args: &CertificateListArgs) -> anyhow::Result<String> {
    let certificates = match &args.dir {
        Some(dir) => of_files(dir, &args.nodes)?,
        None => {
            let operator = Operator::connect(&args.target)?;
            of_nodes(&nodes::all(&operator, "list the certificates").await?)
        }
    };
    args.output.output.show(&Certificates::new(certificates, postroad_env::wall()))
}

/// A certificate, and where it was found.
struct Found {
    of: String,
    at: String,
    certificate: Certificate,
    trusts: Vec<KeyId>,
}

fn of_files(dir: &Path, nodes: &[PathBuf]) -> anyhow::Result<Vec<Found>> {
    let read = |file: &Path| Certificate::read_all(file).with_context(|| format!("`{}`", file.display()));
    let found = |of: &str, file: &Path, certificate| Found {
        of: of.to_owned(),
        at: file.display().to_string(),
        certificate,
        trusts: Vec::new(),
    };
    let mut all = Vec::new();
    let authority = dir.join("authority.pem");
    all.extend(read(&authority)?.into_iter().map(|one| found("authority", &authority, one)));
    let operator = dir.join("operator.pem");
    all.extend(read(&operator)?.into_iter().take(1).map(|one| found("operator", &operator, one)));
    for node in nodes {
        let NodeFiles { stem, identity, certificate } = NodeFiles::find(node)?;
        let of = format!("{} {}", identity.role, identity.node);
        all.push(found(&of, &NodeFiles::path(node, stem), certificate));
    }
    Ok(all)
}

/// The certificates of running nodes, and each authority that one of them trusts.
fn of_nodes(nodes: &[AnnouncedNode]) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for node in nodes {
        let Some(facts) = &node.about.certificates else { continue };
        let of = nodes::name(node);
        let seen = nodes::seen(node.age);
        let at = if node.address.is_empty() { seen } else { format!("{seen} at {}", node.address) };
        let trusts = facts.authorities.iter().filter_map(|authority| authority.key.clone()).collect();
        all.push(Found { of, at, certificate: facts.own.clone(), trusts });
        for authority in &facts.authorities {
            let of = "authority".to_owned();
            if !all.iter().any(|found| found.of == of && found.certificate.key == authority.key) {
                all.push(Found { of, at: String::new(), certificate: authority.clone(), trusts: Vec::new() });
            }
        }
    }
    all
}

/// The result of the command.
#[derive(Debug, Serialize)]
struct Certificates {
    certificates: Vec<ShownCertificate>,
}

#[derive(Debug, Serialize)]
struct ShownCertificate {
    /// A role and a node, `operator` or `authority`.
    of: String,
    ends_at: String,
    /// Whole days; negative once it has ended.
    days_left: i64,
    /// The key of an authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key of the authority that signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<String>,
    /// The keys of the authorities that the node trusts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trusts: Vec<String>,
    /// The file, or when the node was seen last.
    at: String,
}

impl Certificates {
    fn new(mut found: Vec<Found>, now: Timestamp) -> Self {
        found.sort_by_key(|found| found.certificate.not_after);
        let shown = found.into_iter().map(|Found { of, at, certificate, trusts }| {
            let is_authority =
                certificate.key.is_some() && certificate.key == certificate.signed_by || of == "authority";
            ShownCertificate {
                of,
                ends_at: certificate.not_after.to_string(),
                days_left: days_until(certificate.not_after, now),
                key: certificate.key.as_ref().filter(|_| is_authority).map(KeyId::to_string),
                signed_by: certificate.signed_by.as_ref().filter(|_| !is_authority).map(KeyId::to_string),
                trusts: trusts.iter().map(KeyId::to_string).collect(),
                at,
            }
        });
        Self { certificates: shown.collect() }
    }
}

impl Row for ShownCertificate {
    const COLUMNS: &'static [Column] = &[
        text("CERTIFICATE OF"),
        number("DAYS LEFT"),
        text("ENDS"),
        text("KEY"),
        text("SIGNED BY"),
        text("TRUSTS"),
        text("SEEN"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.of.clone(),
            self.days_left.to_string(),
            self.ends_at.clone(),
            self.key.clone().unwrap_or_default(),
            self.signed_by.clone().unwrap_or_default(),
            self.trusts.join(","),
            self.at.clone(),
        ]
    }
}

impl Shown for Certificates {
    fn text(&self, screen: Screen) -> String {
        let none = "no certificates: nodes without mutual TLS have none, and a queue node lists only nodes that have \
                    announced themselves since it started";
        table(&self.certificates, screen, none)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postroad_cluster::AboutNode;
    use postroad_core::NodeId;
    use postroad_net::{CertificateFacts, Role};

    use super::*;

    #[test]
    fn the_certificate_that_ends_first_is_at_the_top_and_an_authority_is_listed_once() {
        let key = |byte: u8| KeyId::from_bytes(&[byte; 20]);
        let certificate = |days: u64, key, signed_by| Certificate {
            identity: None,
            not_before: Timestamp::ZERO,
            not_after: Timestamp::from_millis(days * 86_400_000),
            key,
            signed_by,
        };
        let authority = certificate(3650, key(1), None);
        let node = |role, node, days| AnnouncedNode {
            about: AboutNode {
                role,
                node: NodeId(node),
                version: "1".to_owned(),
                started_at: Timestamp::ZERO,
                certificates: Some(CertificateFacts {
                    own: certificate(days, None, key(1)),
                    authorities: vec![authority.clone()],
                }),
            },
            address: String::new(),
            age: Duration::from_secs(4),
            clock: None,
        };
        let nodes = [node(Role::Queue, 1, 300), node(Role::Ingress, 11, 9)];
        let now = Timestamp::from_millis(10 * 86_400_000);
        let shown = Certificates::new(of_nodes(&nodes), now).text(Screen { width: None });
        let expected = "\
CERTIFICATE OF  DAYS LEFT  ENDS                      KEY               SIGNED BY         TRUSTS            SEEN
ingress 11             -1  1970-01-10T00:00:00.000Z  -                 0101010101010101  0101010101010101  4 s ago
queue 1               290  1970-10-28T00:00:00.000Z  -                 0101010101010101  0101010101010101  4 s ago
authority            3640  1979-12-30T00:00:00.000Z  0101010101010101  -                 -                 -
";
        assert_eq!(shown, expected, "{shown}");
    }
}
