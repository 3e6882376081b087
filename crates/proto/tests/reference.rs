//! The pages about gRPC submission and about events are what `/proto` says.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad-proto --test reference` writes them again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use postroad_proto::DESCRIPTORS;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const SUBMISSION: &str = "# gRPC submission

The service that applications submit mail to.
The contract is [submission.proto](../../proto/postroad/submission/v1/submission.proto), from which this page is made by `crates/proto/tests/reference.rs`, which fails when it is old.
How to use it is in [Send mail from an application](../how-to/send.md), and what its errors mean in [Errors](errors.md).

The listener also has the standard services for health (`grpc.health.v1.Health`) and for reflection, so `grpcurl` needs no file.
";

const EVENTS: &str = "# Events

What happened to a message, as the queue commits it: acceptance, every attempt, and the end of every recipient.
Control reads events into the history, which the console and `postroad message trace` show; the [mail log](mail-log.md) has the same as lines.
This page is made from `proto/postroad/queue/v1/queue.proto` by `crates/proto/tests/reference.rs`, which fails when it is old.

Each ledger group numbers its events without a gap, in the order of their commits, and keeps them until every consumer has read them, up to `queue.event_bytes_max`; beyond it the oldest are dropped and a `gap` says which.
A reader gets every event at least once, and knows one that it has seen by group and sequence.
Only control may read the stream; a program reads the mail log, or asks `GetMessage` of [gRPC submission](grpc.md).
";

/// A file with the comment before each of its items.
struct Documented {
    file: FileDescriptorProto,
    comments: BTreeMap<Vec<i32>, String>,
}

/// The numbers of descriptor.proto by which a comment's place is given.
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const MEMBER: i32 = 2;

impl Documented {
    fn read(name: &str) -> Self {
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let file = set.file.into_iter().find(|file| file.name() == name).unwrap();
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let comments = locations.map(|location| {
            let lines: Vec<&str> = location.leading_comments().lines().map(str::trim).collect();
            // An empty line ends a paragraph, which only texts outside of tables have.
            let text = lines.join(" ").replace("  ", "\n\n");
            (location.path.clone(), text.trim().to_owned())
        });
        let comments = comments.filter(|(_, comment)| !comment.is_empty()).collect();
        Self { file, comments }
    }

    fn comment(&self, path: &[i32]) -> &str {
        self.comments.get(path).map_or("", String::as_str)
    }

    /// A paragraph, where there is a comment.
    fn paragraph(&self, path: &[i32]) -> String {
        let comment = self.comment(path);
        if comment.is_empty() { String::new() } else { format!("{comment}\n\n") }
    }

    fn service(&self, at: i32, service: &ServiceDescriptorProto) -> String {
        let name = format!("{}.{}", self.file.package(), service.name());
        let mut page = format!("\n## {name}\n");
        for (number, method) in (0..).zip(&service.method) {
            let side = |streams: bool, name: &str| {
                let name = short(name);
                let link = format!("[{name}](#{})", name.to_lowercase());
                if streams { format!("stream of {link}") } else { link }
            };
            let takes = side(method.client_streaming(), method.input_type());
            let gives = side(method.server_streaming(), method.output_type());
            let comment = self.comment(&[SERVICE, at, MEMBER, number]);
            writeln!(page, "\n### {}\n\nTakes {takes}, returns {gives}.\n\n{comment}", method.name())
                .unwrap();
        }
        page
    }

    fn message(&self, at: i32, message: &DescriptorProto) -> String {
        let mut page = format!("\n## {}\n\n", message.name());
        page += &self.paragraph(&[MESSAGE, at]);
        if message.field.is_empty() {
            return page + "It has no fields.\n";
        }
        page += "| field | type | |\n|---|---|---|\n";
        for (number, field) in (0..).zip(&message.field) {
            let comment = self.comment(&[MESSAGE, at, MEMBER, number]);
            let choice = match field.oneof_index {
                Some(index) if !field.proto3_optional() => {
                    let name = message.oneof_decl[usize::try_from(index).unwrap()].name();
                    format!("One of `{name}`. ")
                }
                _ => String::new(),
            };
            writeln!(
                page,
                "| `{}` | {} | {} |",
                field.name(),
                kind(field),
                format!("{choice}{comment}").trim_end()
            )
            .unwrap();
        }
        page
    }

    fn enumeration(&self, at: i32, item: &EnumDescriptorProto) -> String {
        let mut page = format!("\n## {}\n\n", item.name());
        page += &self.paragraph(&[ENUM, at]);
        page += "| value | number | |\n|---|---|---|\n";
        for (number, value) in (0..).zip(&item.value) {
            let comment = self.comment(&[ENUM, at, MEMBER, number]);
            writeln!(page, "| `{}` | {} | {comment} |", value.name(), value.number()).unwrap();
        }
        page
    }

    /// The name of a message, and those of the messages and enums that its fields lead to, nearest first.
    fn reached_from(&self, name: &str) -> Vec<String> {
        let mut reached = vec![name.to_owned()];
        let mut next = 0;
        while let Some(name) = reached.get(next) {
            let message = self.file.message_type.iter().find(|message| message.name() == name);
            let fields = message.into_iter().flat_map(|message| &message.field);
            for field in fields.filter(|field| is_own(field)) {
                let name = short(field.type_name());
                if !reached.iter().any(|known| known == name) {
                    reached.push(name.to_owned());
                }
            }
            next += 1;
        }
        reached
    }

    /// A message or an enum.
    fn item(&self, name: &str) -> String {
        let message = (0..).zip(&self.file.message_type).find(|(_, item)| item.name() == name);
        let enumeration = (0..).zip(&self.file.enum_type).find(|(_, item)| item.name() == name);
        let message = message.map(|(at, item)| self.message(at, item));
        message.or_else(|| enumeration.map(|(at, item)| self.enumeration(at, item))).unwrap()
    }
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}

/// Whether the type of a field is one of Postroad's own.
fn is_own(field: &FieldDescriptorProto) -> bool {
    field.type_name().starts_with(".postroad.")
}

fn kind(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum if is_own(field) => {
            let name = short(field.type_name());
            format!("[{name}](#{})", name.to_lowercase())
        }
        Type::Message | Type::Enum => format!("`{}`", field.type_name().trim_start_matches('.')),
        plain => format!("{plain:?}").to_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("list of {name}"),
        _ if field.proto3_optional() => format!("{name}, optional"),
        _ => name,
    }
}

fn check(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/{name} is old: run with POSTROAD_WRITE_DOCS=1");
}

#[test]
fn the_page_of_grpc_submission_is_what_its_contract_says() {
    let proto = Documented::read("postroad/submission/v1/submission.proto");
    let [service] = &proto.file.service[..] else { panic!("one service") };
    let messages = proto.file.message_type.iter().map(|message| message.name());
    let names = messages.chain(proto.file.enum_type.iter().map(|item| item.name()));
    let items: String = names.map(|name| proto.item(name)).collect();
    check("grpc.md", &format!("{SUBMISSION}{}{items}", proto.service(0, service)));
}

#[test]
fn the_page_of_events_is_what_the_queue_sends() {
    let proto = Documented::read("postroad/queue/v1/queue.proto");
    let items: String = proto.reached_from("Event").iter().map(|name| proto.item(name)).collect();
    check("events.md", &format!("{EVENTS}{items}"));
}
