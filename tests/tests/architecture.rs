//! The walls of the building: which crate may see which, and where each foreign crate has its one door.
//!
//! ARCHITECTURE.md draws the same table; a new arrow is a design change and edits both.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Each crate of ours and those of ours it may depend on, besides in tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("telemetry", &["core"]),
    ("smtp", &["core"]),
    ("shaping", &["core"]),
    ("ledger", &["core"]),
    ("directory", &["core"]),
    ("proto", &["core", "ledger", "directory"]),
    ("look", &["core"]),
    ("storage", &["core", "telemetry"]),
    ("dns", &["core", "telemetry"]),
    ("net", &["core", "smtp", "telemetry"]),
    ("mail", &["core", "dns", "telemetry"]),
    ("raft", &["core", "proto", "storage", "net", "telemetry"]),
    ("cluster", &["core", "proto", "directory", "net", "telemetry"]),
    ("ingress", &["core", "telemetry", "smtp", "proto", "directory", "dns", "net", "mail", "cluster"]),
    ("queue", &["core", "telemetry", "ledger", "directory", "proto", "storage", "net", "raft", "cluster"]),
    (
        "outbound",
        &["core", "telemetry", "smtp", "proto", "directory", "storage", "dns", "net", "mail", "cluster"],
    ),
    ("control", &["core", "telemetry", "look", "proto", "directory", "net", "mail", "cluster"]),
    ("sandbox", &["core", "smtp", "look", "net", "mail", "telemetry"]),
];

/// Foreign crates with one door: only the crates named may depend on them directly, tests included.
const DOORS: &[(&str, &[&str])] = &[
    ("openraft", &["raft"]),
    ("sled", &["storage"]),
    ("rustls", &["net"]),
    ("tokio-rustls", &["net"]),
    ("rcgen", &["net"]),
    ("maud", &["look", "control", "sandbox"]),
    ("mail-auth", &["mail"]),
    ("mail-parser", &["mail"]),
    ("hickory-resolver", &["dns"]),
    ("hickory-proto", &["dns", "testkit"]),
    ("hickory-server", &["dns", "testkit"]),
    ("sqlx", &["control"]),
    ("regex", &["shaping"]),
    ("clap", &["postroad", "loadtest", "testkit"]),
    ("anyhow", &["postroad", "loadtest", "testkit", "tests"]),
];

/// What the crates that decide must not reach, however indirectly.
const PURE: &[&str] = &["core", "smtp", "shaping", "ledger", "directory"];
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "socket2",
    "serde",
    "prost",
    "tonic",
    "rand",
    "rand_core",
    "getrandom",
    "chrono",
    "time",
];

/// What must not be in the tree at all, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "one crypto library: aws-lc-rs"),
    ("rsa", "timing side channel, RUSTSEC-2023-0071"),
    ("openssl-sys", "one TLS library: rustls"),
    ("rustls-pemfile", "archived; rustls-pki-types reads PEM"),
    ("lettre", "open injection advisory"),
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .other_options(["--locked".to_owned(), "--filter-platform=host-tuple".to_owned()])
        .exec()
        .expect("cargo metadata runs in the workspace")
}

/// The name without its prefix for crates of ours.
fn ours(name: &str) -> Option<&str> {
    if name == "postroad" { Some(name) } else { name.strip_prefix("postroad-") }
}

#[test]
fn arrows_between_our_crates_point_down_only() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata().workspace_packages() {
        let name = ours(&package.name).expect("every package of the workspace is ours");
        if ["postroad", "testkit", "tests", "loadtest"].contains(&name) {
            continue;
        }
        let may_see = allowed.get(name).unwrap_or_else(|| panic!("crate {name} has no row in ARROWS"));
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            if let Some(seen) = ours(&dependency.name)
                && !may_see.contains(&seen)
            {
                wrong.push(format!("{name} sees {seen}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_foreign_crate_with_a_door_comes_through_it() {
    let doors: BTreeMap<&str, &[&str]> = DOORS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata().workspace_packages() {
        let name = ours(&package.name).expect("every package of the workspace is ours");
        for dependency in &package.dependencies {
            if doors.get(dependency.name.as_str()).is_some_and(|through| !through.contains(&name)) {
                wrong.push(format!("{name} reaches for {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The first command of the README says no more than `cargo run`.
#[test]
fn what_cargo_runs_in_the_workspace_is_postroad() {
    let metadata = metadata();
    let binaries: Vec<&str> = metadata
        .workspace_default_packages()
        .into_iter()
        .flat_map(|package| &package.targets)
        .filter(|target| target.is_bin())
        .map(|target| target.name.as_str())
        .collect();
    assert_eq!(binaries, ["postroad"]);
}

/// The names of all crates that a build of `arguments` needs, with the features it needs itself.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--prefix", "none", "--format", "{p}"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo tree runs in the workspace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("names of crates are text");
    lines.lines().filter(|line| !line.is_empty()).map(|line| line.replace(" v", "@")).collect()
}

fn name(of: &str) -> &str {
    of.split('@').next().unwrap_or(of)
}

#[test]
fn the_crates_that_decide_reach_no_io_clock_or_randomness() {
    let mut wrong = Vec::new();
    for pure in PURE {
        let reached = tree(&["-p", &format!("postroad-{pure}"), "-e", "normal"]);
        assert!(reached.iter().any(|of| name(of) == format!("postroad-{pure}")), "{reached:?}");
        let impure = reached.iter().filter(|of| IMPURE.contains(&name(of)));
        wrong.extend(impure.map(|impure| format!("{pure} reaches {impure}")));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn nothing_banned_is_in_the_tree() {
    let all = tree(&["--workspace", "-e", "normal,build,dev"]);
    for (banned, reason) in BANNED {
        assert!(!all.iter().any(|of| name(of) == *banned), "`{banned}` is in the tree; {reason}");
    }
    let too_new = all.iter().any(|of| name(of) == "mail-parser" && !of.starts_with("mail-parser@0."));
    assert!(!too_new, "mail-parser 1 needs a newer Rust");
}
