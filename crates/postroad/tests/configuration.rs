//! What the declarations of settings say is what happens, and what `docs/reference/configuration.md` says.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad --test configuration` writes the page.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use clap::Parser;
use postroad::{
    cli::{Cli, ClusterCommand, Command, RoleName},
    cluster, config, operator, roles,
};
use postroad_core::{ByteSize, DurationText};
use postroad_settings::{Kind, Setting};
use tempfile::TempDir;
use toml::{Table, Value};

const INTRODUCTION: &str = "# Configuration

A role is started with `postroad ROLE --config FILE`; the file is TOML.
Sections and keys that are left out have the defaults shown here; those without a default are `required`, or do not exist when left out.

| command | does |
|---|---|
| `postroad config check ROLE --config FILE` | reports every error in the file and in the files that it names, with line, key, value and what was expected; says which user it opened the files as |
| `postroad config print ROLE --config FILE` | shows the settings in effect: the file, the environment and defaults |
| `postroad config schema ROLE` | prints the JSON Schema of the file, for editors and for checks before a rollout |

A role checks its file in the same way before it opens a port.

**Values.**
A size is text such as `\"25MiB\"` with `KiB`, `MiB`, `GiB` or `TiB`, or a plain number of bytes.
A duration is text such as `\"300ms\"`, `\"30s\"`, `\"5m\"`, `\"4h\"` or `\"5d\"`.
A relative path counts from the directory of the configuration file, wherever the command is started.

**Environment.**
Variables override the file: `POSTROAD__SECTION__KEY=VALUE`, with the value as TOML or as plain text, such as `POSTROAD__INGRESS__CONNECTIONS_MAX=500`.
Variables for sections that only other roles have are ignored, so that pods and units can share an environment.

**Changes.**
A running process reads its file again on SIGHUP (`systemctl reload`).
Settings that say so take effect at once; for others that have changed, a line in the log asks for a restart.
Certificates and keys need no signal: they are checked for changes every minute, and on SIGHUP at once. A role with a certificate that is not valid now does not start.
";

const ROLES: [RoleName; 4] = [RoleName::Ingress, RoleName::Queue, RoleName::Outbound, RoleName::Control];

#[test]
fn the_configuration_page_is_what_the_declarations_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/configuration.md");
    let page = format!("{INTRODUCTION}{}", postroad_settings::reference(&config::kinds()));
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/configuration.md is old: run with POSTROAD_WRITE_DOCS=1");
}

/// Calls `visit` with every setting that is not a table, and its section and key.
fn for_each_setting(path: &str, kind: &Kind, visit: &mut impl FnMut(&str, &Setting)) {
    for setting in kind.settings().unwrap_or_default() {
        let path = if path.is_empty() { setting.name.to_owned() } else { format!("{path}.{}", setting.name) };
        if !matches!(setting.kind, Kind::Table(_)) {
            visit(&path, setting);
        }
        for_each_setting(&path, &setting.kind, visit);
    }
}

#[test]
fn every_number_has_bounds_and_every_setting_is_explained() {
    for (role, kind) in config::kinds() {
        for_each_setting("", &kind, &mut |path, setting| {
            let is_id = path.ends_with("id") || path.ends_with("node");
            let is_number =
                matches!(setting.kind, Kind::Integer | Kind::Fraction | Kind::Size | Kind::Duration);
            assert!(!is_number || setting.min.is_some(), "{role}: {path} has no bounds");
            assert!(!is_number || is_id || setting.max.is_some(), "{role}: {path} has no upper bound");
            assert!(setting.doc.ends_with('.'), "{role}: {path}: {}", setting.doc);
            let is_compound =
                ["_secs", "_millis", "_ms", "_kb", "_mb"].iter().any(|unit| path.ends_with(unit));
            assert!(!is_compound, "{role}: {path}: the unit belongs to the value");
        });
    }
}

/// A value that the setting may have, and that is not its default.
fn other(setting: &Setting) -> Value {
    let Setting { name, kind, default, min, .. } = setting;
    let start = default.clone().or_else(|| min.clone());
    match kind {
        Kind::Flag => Value::Boolean(start != Some(Value::Boolean(true))),
        Kind::Integer => {
            let start = start.unwrap().as_integer().unwrap();
            Value::Integer(if fits(setting, &Value::Integer(start + 1)) { start + 1 } else { start - 1 })
        }
        Kind::Fraction => Value::Float(start.unwrap().as_float().unwrap() / 2.0),
        Kind::Size => {
            let ByteSize(bytes) = start.unwrap().as_str().unwrap().parse().unwrap();
            let more = Value::String(ByteSize(bytes + 1024).to_string());
            if fits(setting, &more) { more } else { Value::String(ByteSize(bytes - 1024).to_string()) }
        }
        Kind::Duration => {
            let DurationText(duration) = start.unwrap().as_str().unwrap().parse().unwrap();
            let millisecond = std::time::Duration::from_millis(1);
            let more = Value::String(DurationText(duration + millisecond).to_string());
            let less = || Value::String(DurationText(duration - millisecond).to_string());
            if fits(setting, &more) { more } else { less() }
        }
        Kind::Text { example, .. } if start == Some(Value::String((*example).to_owned())) => {
            let mut text = (*example).to_owned();
            let last = text.pop();
            text.push(if last == Some('1') { '2' } else { '1' });
            Value::String(text)
        }
        Kind::Text { example, .. } => Value::String((*example).to_owned()),
        Kind::Choice(choices) => {
            let mut words = choices.iter().map(|choice| Value::String(choice.name.to_owned()));
            words.find(|word| Some(word) != start.as_ref()).unwrap()
        }
        Kind::List(kind) => {
            let item =
                Setting { kind: (**kind).clone(), default: None, min: None, max: None, ..setting.clone() };
            Value::Array(vec![other(&item)])
        }
        Kind::Table(settings) => {
            assert!(!settings.is_empty(), "{name} is empty");
            settings.iter().map(|setting| (setting.name.to_owned(), other(setting))).collect::<Table>().into()
        }
    }
}

/// A bound is the same kind of value: sizes and durations are compared by what they mean.
fn fits(setting: &Setting, value: &Value) -> bool {
    let meaning = |value: &Value| match value {
        Value::Integer(number) => u128::try_from(*number).unwrap(),
        Value::String(text) => match text.parse::<DurationText>() {
            Ok(DurationText(duration)) => duration.as_millis(),
            Err(_) => text.parse::<ByteSize>().unwrap().bytes().into(),
        },
        other => panic!("{other} is no number"),
    };
    setting.max.as_ref().is_none_or(|max| meaning(value) <= meaning(max))
}

/// Relative paths are printed as what they mean.
fn absolute(kind: &Kind, value: &mut Value, dir: &Path) {
    match (kind, value) {
        (Kind::Text { what, .. }, Value::String(text)) if what.starts_with("the path") => {
            *text = dir.join(&*text).display().to_string();
        }
        (Kind::Table(settings), Value::Table(table)) => {
            for setting in settings {
                absolute(&setting.kind, table.get_mut(setting.name).unwrap(), dir);
            }
        }
        _ => {}
    }
}

#[test]
fn every_setting_takes_a_value_that_is_not_its_default() {
    let dir = TempDir::new().unwrap();
    for (role, (name, kind)) in ROLES.into_iter().zip(config::kinds()) {
        let root = Setting {
            name,
            doc: String::new(),
            kind: kind.clone(),
            default: None,
            required: true,
            min: None,
            max: None,
            reload: false,
        };
        let mut expected = other(&root);
        if role != RoleName::Queue {
            // Rules that a single value cannot keep: the node is not one of the queue's, and no address is listed twice.
            expected["cluster"]["queue"][0]["node"] = Value::Integer(7);
        }
        if role == RoleName::Ingress {
            expected["ingress"]["grpc_listen"] = Value::String("127.0.0.1:5051".to_owned());
        }
        let file = dir.path().join(format!("{name}.toml"));
        fs::write(&file, toml::to_string(&expected).unwrap()).unwrap();
        let printed: Table = config::print(role, &file).unwrap().parse().unwrap();
        absolute(&kind, &mut expected, dir.path());
        for_each_setting("", &kind, &mut |path, setting| {
            let value = |root: &Value| {
                let found = path.split('.').try_fold(root.clone(), |value, key| {
                    let value = if let Value::Array(items) = value { items[0].clone() } else { value };
                    value.get(key).cloned()
                });
                found.unwrap_or_else(|| panic!("{name}: {path} is not printed"))
            };
            let printed = value(&Value::Table(printed.clone()));
            assert_eq!(printed, value(&expected), "{name}: {path}");
            assert_ne!(Some(printed), setting.default, "{name}: {path} is its default");
        });
    }
}

/// A cluster's files, as the commands write them.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { dir: TempDir::new().unwrap() };
        let init = ["init", "--queue", "1=127.0.0.1:7400"];
        files.run(&[&init[..], &["--dir", &files.path("cluster")]].concat());
        files
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs `postroad cluster`.
    fn run(&self, arguments: &[&str]) -> String {
        let cli = Cli::try_parse_from([&["postroad", "cluster"], arguments].concat()).unwrap();
        match cli.command {
            Command::Cluster(ClusterCommand::Init(args)) => cluster::init(&args).unwrap(),
            Command::Cluster(ClusterCommand::Join(args)) => cluster::join(&args).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Makes a node; returns its configuration.
    fn join(&self, role: RoleName, node: u64) -> PathBuf {
        let (name, out) = (role.as_str(), format!("{}-{node}", role.as_str()));
        let own = match role {
            RoleName::Ingress => ["--hostname", "mail.example.org"],
            _ => ["--data", "data"],
        };
        let (cluster, out) = (self.path("cluster"), self.path(&out));
        let common = ["join", name, "--node", &node.to_string(), "--dir", &cluster, "--out", &out];
        self.run(&[&common[..], &own].concat());
        Path::new(&out).join(format!("{name}.toml"))
    }
}

/// Starts a role that has something wrong with its file; returns the error that comes before it opens or waits for anything.
fn start(role: RoleName, file: &Path) -> String {
    let mut start: Pin<Box<dyn Future<Output = anyhow::Result<()>>>> = match role {
        RoleName::Ingress => Box::pin(roles::ingress(file)),
        RoleName::Queue => Box::pin(roles::queue(file)),
        RoleName::Outbound => Box::pin(roles::outbound(file)),
        RoleName::Control => Box::pin(roles::control(file)),
    };
    match start.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Checks that `config check` and the role find these things wrong, and nothing else.
fn check(role: RoleName, file: &Path, expected: &[&str]) {
    let error = config::check(role, file).unwrap_err().to_string();
    assert_eq!(error, start(role, file));
    for line in expected {
        assert!(error.contains(line), "`{line}` is missing in\n{error}");
    }
    // The heading and the user.
    assert_eq!(error.lines().count(), expected.len() + 2, "{error}");
    assert!(error.contains("\n  files were opened as "), "{error}");
}

#[test]
fn the_files_of_a_node_work_wherever_they_are_moved_together() {
    let files = Files::new();
    for (role, node) in ROLES.into_iter().zip([11, 1, 21, 31]) {
        let made = files.join(role, node);
        let moved = files.dir.path().join(format!("etc-{}", role.as_str()));
        fs::rename(made.parent().unwrap(), &moved).unwrap();
        let config = moved.join(made.file_name().unwrap());
        let text = config::check(role, &config).unwrap();
        assert!(text.starts_with(&format!("OK: {} configures", config.display())), "{text}");
        assert!(text.contains("files were opened as "), "{text}");
        if role != RoleName::Ingress {
            let printed = config::print(role, &config).unwrap();
            assert!(printed.contains(&format!("data = \"{}\"", moved.join("data").display())), "{printed}");
        }
    }
}

#[test]
fn files_that_are_missing_or_unusable_are_reported_together() {
    let files = Files::new();
    let config = files.join(RoleName::Queue, 1);
    let dir = config.parent().unwrap();
    fs::remove_file(dir.join("queue.key")).unwrap();
    fs::remove_file(dir.join("authority.pem")).unwrap();
    fs::write(dir.join("data"), "").unwrap();
    let expected = [
        "`node.data` = \"data\": `",
        "`cluster.authority` = \"authority.pem\": `",
        "`cluster.key` = \"queue.key\": `",
    ];
    check(RoleName::Queue, &config, &expected);
}

#[test]
fn a_file_that_is_not_toml_or_not_there_is_not_blamed_for_what_it_names() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("queue.toml");
    check(RoleName::Queue, &file, &["cannot be read: No such file"]);
    fs::write(&file, "-----BEGIN CERTIFICATE-----\n").unwrap();
    check(RoleName::Queue, &file, &[":1: not TOML: "]);
}

#[test]
fn certificates_are_used_as_the_node_would_use_them() {
    let (files, other) = (Files::new(), Files::new());
    let config = files.join(RoleName::Outbound, 21);
    let swap = |name: &str, from: PathBuf| {
        let own = config.parent().unwrap().join(name);
        let kept = fs::read(&own).unwrap();
        fs::copy(from, &own).unwrap();
        move || fs::write(own, kept).unwrap()
    };
    let neighbour = files.join(RoleName::Outbound, 22);
    let beside = |name: &str| neighbour.parent().unwrap().join(name);

    let restore = swap("outbound.key", beside("outbound.key"));
    check(RoleName::Outbound, &config, &["`cluster.certificate` = \"outbound.pem\": "]);
    restore();
    let restore = swap("outbound.key", beside("outbound.pem"));
    check(
        RoleName::Outbound,
        &config,
        &["`cluster.key` = \"outbound.key\": no valid private key in the PEM file"],
    );
    restore();
    let restore = swap("authority.pem", beside("outbound.key"));
    check(
        RoleName::Outbound,
        &config,
        &["`cluster.authority` = \"authority.pem\": no valid certificate in the PEM file"],
    );
    restore();
    let restore = swap("authority.pem", other.dir.path().join("cluster/authority.pem"));
    check(
        RoleName::Outbound,
        &config,
        &["`cluster.certificate` = \"outbound.pem\": refused with this `authority`"],
    );
    restore();

    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("id = 21\n", "id = 23\n")).unwrap();
    let expected = "is of outbound node 21 in cluster";
    check(RoleName::Outbound, &config, &[expected]);
}

#[test]
fn listeners_that_need_a_certificate_are_found_without_one() {
    let files = Files::new();
    let config = files.join(RoleName::Ingress, 11);
    let text = fs::read_to_string(&config).unwrap().replace("self_signed = true", "");
    let text = text.replace("[ingress]\n", "[ingress]\ngrpc_listen = \"192.0.2.1:5051\"\n");
    fs::write(&config, &text).unwrap();
    let expected = [
        "`ingress.listeners` = […]: `implicit_tls` needs `tls.certificate`",
        "`ingress.grpc_listen` = \"192.0.2.1:5051\": gRPC without TLS shows API keys; expected `tls.certificate`",
    ];
    check(RoleName::Ingress, &config, &expected);

    let certificate = "[tls]\ncertificate = \"ingress.pem\"\nkey = \"authority.pem\"\n";
    fs::write(&config, text.replace("[tls]\n", certificate)).unwrap();
    check(
        RoleName::Ingress,
        &config,
        &["`tls.key` = \"authority.pem\": no valid private key in the PEM file"],
    );
}

#[tokio::test]
async fn an_operators_file_is_checked_with_the_files_that_it_names() {
    let files = Files::new();
    let config = files.path("cluster/operator.toml");
    let get = async || {
        let cli = Cli::try_parse_from(["postroad", "get", "--config", &config]).unwrap();
        let Command::Get(args) = cli.command else { panic!("it is `get`") };
        operator::get(&args).await.unwrap_err().to_string()
    };
    fs::remove_file(files.path("cluster/operator.key")).unwrap();
    fs::remove_file(files.path("cluster/authority.pem")).unwrap();
    let error = get().await;
    for line in ["`cluster.authority` = \"authority.pem\": `", "`cluster.key` = \"operator.key\": `"] {
        assert!(error.contains(line), "`{line}` is missing in\n{error}");
    }
}

#[test]
fn an_address_or_a_node_that_is_listed_twice_is_found() {
    let files = Files::new();
    let config = files.join(RoleName::Ingress, 11);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("0.0.0.0:465", "0.0.0.0:587")).unwrap();
    check(RoleName::Ingress, &config, &["`ingress.listeners` = […]: 0.0.0.0:587 is listed twice"]);
    let node = "  { node = 1, address = \"127.0.0.1:7400\" },\n";
    fs::write(&config, text.replace(node, &node.repeat(3))).unwrap();
    check(RoleName::Ingress, &config, &["`cluster.queue` = […]: node 1 is listed twice"]);
}

#[test]
fn a_schema_is_json_and_describes_the_file_of_each_role() {
    for (role, (_, kind)) in ROLES.into_iter().zip(config::kinds()) {
        let schema: serde_json::Value = serde_json::from_str(&config::schema(role)).unwrap();
        for_each_setting("", &kind, &mut |path, setting| {
            let property = path.split('.').fold(&schema, |schema, key| {
                let schema = if schema["items"].is_object() { &schema["items"] } else { schema };
                &schema["properties"][key]
            });
            assert_eq!(property["description"], setting.doc, "{path}");
        });
    }
}
