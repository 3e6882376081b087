//! A small configuration through everything that is made from its declaration.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use postroad_core::ByteSize;
use postroad_settings::{
    Change, HostPort, Problems, ReadableFile, Rules, Source, WritableDirectory, WritableFile, changes,
    choices, json_schema, print, reference, require, settings,
};

settings! {
    /// The file.
    pub struct File {
        /// How mail is taken.
        ingress: Ingress;
        /// Where things are.
        paths: Paths;
    }
}

settings! {
    /// How mail is taken.
    pub struct Ingress {
        /// Connections at the same time,
        /// over all listeners.
        connections_max: usize = 100, within 1..=1000;
        /// The largest message.
        message_size_max: ByteSize = ByteSize::mib(25), within ByteSize::kib(1)..=ByteSize::mib(256);
        /// Messages in memory.
        in_flight_bytes_max: ByteSize = ByteSize::mib(64), within ByteSize::mib(1)..;
        /// How long a command may take.
        command_timeout: Duration = Duration::from_mins(5), within Duration::from_secs(1)..=Duration::from_hours(1);
        /// The name in the greeting.
        hostname: String;
        /// Where SMTP is served.
        listeners: Vec<Listener> = Vec::new();
        /// Another node.
        peer: Option<HostPort>;
        /// What is logged.
        filter: String = "info".to_owned(), reload = true;
    }
    rules Self::rules;
}

impl Ingress {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        let (room, largest) = (self.in_flight_bytes_max, self.message_size_max);
        require!(rules, self.in_flight_bytes_max, self.message_size_max;
            room >= largest, "expected at least `message_size_max` ({largest})");
    }
}

settings! {
    /// One listener.
    pub struct Listener {
        /// Address and port.
        listen: SocketAddr;
        /// Who it is for.
        service: Service = Service::Submission;
    }
}

choices! {
    /// Who a listener is for.
    pub enum Service {
        /// Clients log in.
        Submission = "submission",
        /// Other mail systems.
        Relay = "relay",
    }
}

settings! {
    /// Files.
    pub struct Paths {
        /// A certificate.
        certificate: Option<ReadableFile>;
        /// Data.
        data: Option<WritableDirectory>;
        /// A log.
        log: Option<WritableFile>;
    }
}

const GOOD: &str = "[ingress]\nhostname = \"a\"\n";

fn source(dir: &Path, text: &str, variables: &[(&str, &str)]) -> Source {
    let file = dir.join("node.toml");
    fs::write(&file, text).unwrap();
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Source::new(&file).with_variables(variables.collect()).ignoring(vec!["outbound"])
}

fn read(text: &str, variables: &[(&str, &str)]) -> (File, Problems) {
    let dir = tempfile::tempdir().unwrap();
    source(dir.path(), text, variables).read()
}

/// Checks that a file has these errors and no others, each as it is printed after the file's name.
fn check(text: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let error = read(text, variables).1.finish().unwrap_err();
    let found: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

#[test]
fn values_are_read_with_their_types_and_defaults() {
    let text = "[ingress]\nhostname = \"a\"\nconnections_max = 7\nmessage_size_max = \"1MiB\"\n\
                command_timeout = \"90s\"\npeer = \"q1.example:7400\"\n\
                [[ingress.listeners]]\nlisten = \"[::1]:25\"\nservice = \"relay\"\n";
    let (file, problems) = read(text, &[]);
    problems.finish().unwrap();
    let expected = Ingress {
        hostname: "a".to_owned(),
        connections_max: 7,
        message_size_max: ByteSize::mib(1),
        command_timeout: Duration::from_secs(90),
        peer: Some("q1.example:7400".parse().unwrap()),
        listeners: vec![Listener { listen: "[::1]:25".parse().unwrap(), service: Service::Relay }],
        ..Ingress::default()
    };
    assert_eq!(file.ingress, expected);
    assert_eq!(expected.filter, "info");
}

#[test]
fn the_environment_is_laid_over_the_file() {
    let variables = [
        ("POSTROAD__INGRESS__CONNECTIONS_MAX", "7"),
        ("POSTROAD__INGRESS__HOSTNAME", "10"),
        ("POSTROAD__INGRESS__COMMAND_TIMEOUT", "30s"),
        ("POSTROAD__INGRESS__LISTENERS", "[{ listen = \"[::]:25\" }]"),
        ("POSTROAD__OUTBOUND__NO_SUCH_KEY", "1"),
        ("POSTROAD_SERVICE_PORT", "1"),
    ];
    let (file, problems) = read("[ingress]\nconnections_max = 1", &variables);
    problems.finish().unwrap();
    assert_eq!((file.ingress.connections_max, &*file.ingress.hostname), (7, "10"));
    assert_eq!(file.ingress.command_timeout, Duration::from_secs(30));
    assert_eq!(file.ingress.listeners.len(), 1);
}

#[test]
fn an_override_below_a_value_is_blamed_instead_of_the_line_of_the_value() {
    let text = format!("{GOOD}listeners = [{{ listen = \"127.0.0.1:25\" }}]\nconnections_max = 7\n");
    check(
        &text,
        &[
            ("POSTROAD__INGRESS__CONNECTIONS_MAX__NOW", "8"),
            ("POSTROAD__INGRESS__LISTENERS__0__LISTEN", "127.0.0.1:26"),
        ],
        &[
            ": environment variable `POSTROAD__INGRESS__CONNECTIONS_MAX__NOW`: `ingress.connections_max` = {…}: \
             expected a whole number, 1 to 1000",
            ": environment variable `POSTROAD__INGRESS__LISTENERS__0__LISTEN`: `ingress.listeners` = {…}: \
             expected a list, each a table",
        ],
    );
    // A variable for the whole value and one below it: the later of the two is to blame.
    check(
        GOOD,
        &[("POSTROAD__INGRESS__CONNECTIONS_MAX", "7"), ("POSTROAD__INGRESS__CONNECTIONS_MAX__NOW", "8")],
        &[
            ": environment variable `POSTROAD__INGRESS__CONNECTIONS_MAX__NOW`: `ingress.connections_max` = {…}: \
           expected a whole number, 1 to 1000",
        ],
    );
}

#[test]
fn every_error_is_reported_with_line_key_value_and_what_was_expected() {
    let text = "[ingress]\nconnections_max = \"many\"\ncomand_timeout = \"5m\"\nmessage_size_max = \"1GiB\"\n\
                command_timeout = 30\npeer = \"nowhere\"\n\n[[ingress.listeners]]\nlisten = \"localhost\"\nservice = \"x\"\n\
                [ingres]\nhostname = \"y\"\n[paths]\nqwertz = 1\n";
    check(
        text,
        &[("POSTROAD__INGRESS__FILTER", "1"), ("POSTROAD__INGRESS__IN_FLIGHT_BYTES_MAX", "-1")],
        &[
            ": `ingress.hostname`: missing; expected text such as \"text\"",
            ":2: `ingress.connections_max` = \"many\": expected a whole number, 1 to 1000",
            ":3: `ingress.comand_timeout` = \"5m\": unknown setting; did you mean `command_timeout`?",
            ":4: `ingress.message_size_max` = \"1GiB\": expected a size such as \"25MiB\", 1KiB to 256MiB",
            ":5: `ingress.command_timeout` = 30: expected a duration such as \"30s\", 1s to 1h",
            ":6: `ingress.peer` = \"nowhere\": expected a host and port such as \"q1.example.org:7400\"",
            ":9: `ingress.listeners[0].listen` = \"localhost\": expected an IP address and port such as \"127.0.0.1:8080\"",
            ":10: `ingress.listeners[0].service` = \"x\": expected \"submission\" or \"relay\"",
            ":11: `ingres`: unknown section; did you mean `ingress`?",
            ":14: `paths.qwertz` = 1: unknown setting; expected one of certificate, data, log",
            ": environment variable `POSTROAD__INGRESS__IN_FLIGHT_BYTES_MAX`: `ingress.in_flight_bytes_max` = -1: \
             expected a size such as \"25MiB\", at least 1MiB",
        ],
    );
}

#[test]
fn a_section_of_another_role_is_named_as_such() {
    check(
        &format!("{GOOD}[outbound]\nsmtp_port = 25\n"),
        &[("POSTROAD__OUTBOND__SMTP_PORT", "25")],
        &[
            ":3: `outbound`: a section of other roles; expected one of ingress, paths",
            ": environment variable `POSTROAD__OUTBOND__SMTP_PORT`: `outbond`: unknown section; did you mean `outbound`?",
        ],
    );
}

#[test]
fn rules_between_settings_name_the_line_and_are_skipped_where_a_value_is_wrong() {
    let text = format!("{GOOD}in_flight_bytes_max = \"2MiB\"\n");
    check(
        &text,
        &[],
        &[":3: `ingress.in_flight_bytes_max` = \"2MiB\": expected at least `message_size_max` (25MiB)"],
    );
    let text = format!("{text}message_size_max = 0\n");
    check(
        &text,
        &[],
        &[":4: `ingress.message_size_max` = 0: expected a size such as \"25MiB\", 1KiB to 256MiB"],
    );
}

#[test]
fn errors_of_syntax_are_reported_with_the_others_and_a_missing_key_is_not_guessed() {
    let error =
        read("[ingress]\nhostname \"a\"\nconnections_max = 0\nfilter =\n", &[]).1.finish().unwrap_err();
    let text = error.to_string();
    for line in [":2: not TOML", ":3: `ingress.connections_max` = 0: expected", ":4: not TOML"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("missing"), "{text}");
}

#[test]
fn the_number_of_errors_is_in_words_that_fit() {
    let error = |text| read(text, &[]).1.finish().unwrap_err().to_string();
    assert!(error("").starts_with("1 error in the configuration `"), "{}", error(""));
    assert!(error("[x]").starts_with("2 errors in the configuration `"), "{}", error("[x]"));
}

#[test]
fn paths_are_relative_to_the_file_and_opened_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        format!("{GOOD}[paths]\ncertificate = \"a.pem\"\ndata = \"data\"\nlog = \"no/such/dir/log\"\n");
    let source = source(dir.path(), &text, &[]);
    let (file, problems) = source.read::<File>();
    problems.finish().unwrap();
    assert_eq!(file.paths.certificate.unwrap().0, dir.path().join("a.pem"));

    let source = source.opening_files();
    let error = source.read::<File>().1.finish().unwrap_err().to_string();
    assert!(error.contains(":4: `paths.certificate` = \"a.pem\": `"), "{error}");
    assert!(error.contains("a.pem` cannot be read: No such file"), "{error}");
    assert_eq!(error.lines().count(), 2, "what does not exist yet can be created: {error}");

    fs::create_dir(dir.path().join("a.pem")).unwrap();
    fs::write(dir.path().join("data"), "").unwrap();
    fs::create_dir_all(dir.path().join("no/such/dir/log")).unwrap();
    let error = source.read::<File>().1.finish().unwrap_err().to_string();
    for reason in ["cannot be read: Is a directory", "data` is not a directory", "log` is a directory"] {
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn what_is_printed_is_read_back_the_same() {
    let text = format!("{GOOD}listeners = [{{ listen = \"127.0.0.1:25\" }}]\n");
    let (file, problems) = read(&text, &[]);
    problems.finish().unwrap();
    let printed = print(&file);
    assert!(
        printed.starts_with("[ingress]\nconnections_max = 100\nmessage_size_max = \"25MiB\"\n"),
        "{printed}"
    );
    assert!(printed.contains("\n# peer is not set\n"), "{printed}");
    let (again, problems) = read(&printed, &[]);
    problems.finish().unwrap();
    assert_eq!(again, file);
}

#[test]
fn changes_say_which_of_them_a_running_process_takes_over() {
    let old = File::default();
    let mut new = old.clone();
    new.ingress.peer = Some("q1.example:7400".parse().unwrap());
    new.ingress.filter = "debug".to_owned();
    let change = |key: &str, reload| Change { key: key.to_owned(), reload };
    assert_eq!(changes(&old, &new), [change("ingress.peer", false), change("ingress.filter", true)]);
    assert_eq!(changes(&new, &new), []);
}

#[test]
fn schema_and_reference_say_what_is_declared() {
    let schema = json_schema::<File>("postroad ingress");
    assert_eq!(schema["required"], serde_json::json!(["ingress"]));
    let ingress = &schema["properties"]["ingress"];
    assert_eq!(ingress["additionalProperties"], false);
    assert_eq!(ingress["required"], serde_json::json!(["hostname"]));
    let connections = &ingress["properties"]["connections_max"];
    assert_eq!(
        *connections,
        serde_json::json!({
            "type": "integer", "minimum": 1, "maximum": 1000, "default": 100,
            "description": "Connections at the same time, over all listeners."
        })
    );
    let service = &ingress["properties"]["listeners"]["items"]["properties"]["service"];
    assert_eq!(service["oneOf"][1]["const"], "relay");

    let kind = <File as postroad_settings::SettingValue>::kind();
    let page = reference(&[("ingress", kind)]);
    for line in [
        "| ingress | [ingress](#ingress), [paths](#paths) |",
        "| `connections_max` | `100` | number, 1 to 1000 | Connections at the same time, over all listeners. |",
        "| `hostname` | required | text | The name in the greeting. |",
        "| `filter` | `\"info\"` | text | What is logged. Can be changed while running. |",
        "## [[ingress.listeners]]",
    ] {
        assert!(page.contains(line), "{page}");
    }
}
