//! Which of our crates may depend on which, and which crates may use each foreign crate.
//!
//! ARCHITECTURE.md has the same table; a new dependency between our crates is a design change and edits both.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use postroad_tests::{files_in, relative, root};

/// Each of our crates and those of ours that it may depend on; tests may use more.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("env", &["core"]),
    ("settings", &["core"]),
    ("telemetry", &["core", "env", "settings"]),
    ("smtp", &["core"]),
    ("shaping", &["core"]),
    ("ledger", &["core"]),
    ("directory", &["core"]),
    ("proto", &["core", "ledger", "directory"]),
    ("web", &["core"]),
    ("storage", &["core", "env", "telemetry"]),
    ("dns", &["core", "env", "telemetry"]),
    ("net", &["core", "env", "smtp", "telemetry"]),
    ("mail", &["core", "dns", "telemetry"]),
    ("raft", &["core", "env", "proto", "storage", "net", "telemetry"]),
    ("cluster", &["core", "env", "proto", "directory", "net", "telemetry"]),
    (
        "ingress",
        &[
            "core",
            "env",
            "settings",
            "telemetry",
            "smtp",
            "proto",
            "directory",
            "dns",
            "net",
            "mail",
            "cluster",
        ],
    ),
    (
        "queue",
        &[
            "core",
            "env",
            "settings",
            "telemetry",
            "ledger",
            "directory",
            "proto",
            "storage",
            "net",
            "raft",
            "cluster",
        ],
    ),
    (
        "outbound",
        &[
            "core",
            "env",
            "settings",
            "telemetry",
            "smtp",
            "shaping",
            "proto",
            "directory",
            "storage",
            "dns",
            "net",
            "mail",
            "cluster",
        ],
    ),
    (
        "control",
        &["core", "env", "settings", "telemetry", "web", "proto", "directory", "net", "mail", "cluster"],
    ),
    ("sandbox", &["core", "env", "smtp", "web", "net", "mail", "telemetry"]),
    // It judges the others, so it shares nothing with them but their words.
    ("oracle", &["core"]),
];

/// Foreign crates and the only crates of ours that may depend on them directly, in tests too.
const USERS: &[(&str, &[&str])] = &[
    ("openraft", &["raft"]),
    ("sled", &["storage"]),
    ("rustls", &["net"]),
    ("tokio-rustls", &["net"]),
    ("rcgen", &["net"]),
    ("maud", &["web", "control", "sandbox"]),
    ("hyper", &["postroad"]),
    ("mail-auth", &["mail"]),
    ("mail-parser", &["mail"]),
    ("encoding_rs", &["mail"]),
    ("metrics", &["telemetry", "faults"]),
    ("metrics-exporter-prometheus", &["telemetry"]),
    ("hickory-resolver", &["dns"]),
    ("hickory-proto", &["dns", "testkit"]),
    ("hickory-server", &["dns", "testkit"]),
    ("sqlx", &["control"]),
    ("regex", &["shaping"]),
    ("clap", &["postroad", "loadtest", "testkit", "faults"]),
    ("clap_complete", &["postroad"]),
    // They make secrets predictable.
    ("postroad-machine", &["faults"]),
    ("libc", &["machine"]),
    ("ratatui", &["postroad"]),
    ("anyhow", &["postroad", "loadtest", "testkit", "tests"]),
];

/// The crates without I/O, and what they must not depend on, directly or not.
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

/// Crates that no crate of ours may depend on, directly or not, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "one crypto library: aws-lc-rs"),
    ("rsa", "timing side channel, RUSTSEC-2023-0071"),
    ("openssl-sys", "one TLS library: rustls"),
    ("rustls-pemfile", "archived; rustls-pki-types reads PEM"),
    ("lettre", "open injection advisory"),
];

/// Crates whose earlier versions have a known fault that mail could reach; not all of them are in the tree.
const FLOORS: &[(&str, [u64; 3])] = &[
    ("hickory-resolver", [0, 26, 2]),
    ("rustls", [0, 23, 46]),
    ("rustls-webpki", [0, 103, 13]),
    ("h2", [0, 4, 16]),
    ("tonic", [0, 12, 3]),
    ("bytes", [1, 11, 1]),
    ("time", [0, 3, 47]),
    ("quick-xml", [0, 41, 0]),
    ("idna", [1, 0, 3]),
    ("protobuf", [3, 7, 2]),
    ("lz4_flex", [0, 11, 6]),
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .other_options(["--locked".to_owned(), "--filter-platform=host-tuple".to_owned()])
        .exec()
        .expect("cargo metadata runs in the workspace")
}

/// The name of one of our crates without its prefix.
fn ours(name: &str) -> Option<&str> {
    if name == "postroad" { Some(name) } else { name.strip_prefix("postroad-") }
}

#[test]
fn our_crates_depend_on_lower_layers_only() {
    let allowed: BTreeMap<&str, &[&str]> = DEPENDENCIES.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata().workspace_packages() {
        let name = ours(&package.name).expect("every package of the workspace is ours");
        if ["postroad", "monitoring", "testkit", "tests", "loadtest", "faults", "machine"].contains(&name) {
            continue;
        }
        let allowed = allowed.get(name).unwrap_or_else(|| panic!("crate {name} has no row in DEPENDENCIES"));
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            if let Some(used) = ours(&dependency.name)
                && !allowed.contains(&used)
            {
                wrong.push(format!("{name} depends on {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn foreign_crates_are_used_only_where_allowed() {
    let users: BTreeMap<&str, &[&str]> = USERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata().workspace_packages() {
        let name = ours(&package.name).expect("every package of the workspace is ours");
        for dependency in &package.dependencies {
            if users.get(dependency.name.as_str()).is_some_and(|allowed| !allowed.contains(&name)) {
                wrong.push(format!("{name} depends on {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The first command of the README is `cargo run`, without `--bin`.
#[test]
fn cargo_run_in_the_workspace_runs_postroad() {
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

/// Every crate in the dependency tree of `arguments`, as `name@version`.
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

/// The version of `name@1.2.3`, without what follows the numbers.
fn version(of: &str) -> [u64; 3] {
    let numbers = of.split('@').nth(1).unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut numbers = numbers.map(|number| number.parse().unwrap_or_default());
    std::array::from_fn(|_| numbers.next().unwrap_or_default())
}

#[test]
fn pure_crates_depend_on_no_io_clock_or_randomness() {
    let mut wrong = Vec::new();
    for pure in PURE {
        let crates = tree(&["-p", &format!("postroad-{pure}"), "-e", "normal"]);
        assert!(crates.iter().any(|of| name(of) == format!("postroad-{pure}")), "{crates:?}");
        let impure = crates.iter().filter(|of| IMPURE.contains(&name(of)));
        wrong.extend(impure.map(|impure| format!("{pure} depends on {impure}")));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Each process gives a hash map another order, and two replicas that iterate over one differ.
#[test]
fn replicated_state_has_no_hash_maps() {
    // What a process derives from the directory for itself.
    const DERIVED: &str = "crates/directory/src/view.rs";
    let state =
        ["crates/ledger/src", "crates/directory/src"].map(|state| files_in(&root().join(state))).concat();
    let has_hashes = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("it is text");
        ["HashMap", "HashSet", "RandomState"].iter().any(|name| text.contains(name))
    };
    let wrong: Vec<String> =
        state.iter().filter(|path| has_hashes(path)).map(|path| relative(path)).collect();
    assert_eq!(wrong, [DERIVED]);
}

#[test]
fn c_180_no_banned_crate_is_in_the_dependency_tree() {
    let all = tree(&["--workspace", "-e", "normal,build,dev"]);
    for (banned, reason) in BANNED {
        assert!(!all.iter().any(|of| name(of) == *banned), "the workspace depends on `{banned}`; {reason}");
    }
    let too_new = all.iter().any(|of| name(of) == "mail-parser" && !of.starts_with("mail-parser@0."));
    assert!(!too_new, "mail-parser 1 needs a newer Rust");
}

#[test]
fn c_180_no_crate_is_older_than_the_fix_of_a_known_fault() {
    let all = tree(&["--workspace", "-e", "normal,build,dev"]);
    for (crate_name, floor) in FLOORS {
        for of in all.iter().filter(|of| name(of) == *crate_name) {
            assert!(version(of) >= *floor, "{of} is older than {floor:?}");
        }
    }
    assert_eq!(version("rustls@0.23.46 (*)"), [0, 23, 46]);
}

#[test]
fn c_181_no_crate_of_ours_may_use_unsafe_code_and_a_release_checks_for_overflow() {
    #[derive(serde::Deserialize)]
    struct Manifest {
        lints: Option<toml::Table>,
        workspace: Option<toml::Table>,
        profile: Option<toml::Table>,
    }
    let read = |path: &str| -> Manifest {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let root = read(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    let workspace = root.workspace.expect("it is a workspace");
    assert_eq!(workspace["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    assert_eq!(root.profile.expect("it has profiles")["release"]["overflow-checks"].as_bool(), Some(true));
    // It replaces functions of the C library in the program of the simulation.
    let inheriting = |package: &&cargo_metadata::Package| *package.name != *"postroad-machine";
    for package in metadata().workspace_packages().into_iter().filter(inheriting) {
        let lints = read(package.manifest_path.as_str()).lints;
        let inherits = lints.is_some_and(|lints| lints.get("workspace") == Some(&toml::Value::Boolean(true)));
        assert!(inherits, "{} does not inherit the lints of the workspace", package.name);
    }
}
