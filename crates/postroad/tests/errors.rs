//! `docs/reference/errors.md` says what the tables of the code say.
//!
//! `POSTROAD_WRITE_DOCS=1 cargo test -p postroad --test errors` writes the page again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, fs, path::Path};

use postroad::operator::EXIT_STATUS_HELP;
use postroad_core::Reply;
use postroad_ingress::error::{GrpcError, refusals};
use postroad_smtp::server::SessionError;
use tonic::Code;

const INTRODUCTION: &str = "# Errors

What clients of the SMTP and gRPC listeners are refused with, and how commands end.
This page is made from the tables in `crates/smtp/src/server/errors.rs`, `crates/ingress/src/error.rs` and `crates/postroad/src/operator/error.rs`, by `crates/postroad/tests/errors.rs`, which fails when it is old.

A code of 4xx, and the gRPC status UNAVAILABLE, is temporary: the client keeps the message and tries again, after a while or with another ingress node.
A code of 5xx, and every other status, is final for this message: trying again without a change ends the same way.
The second code is the enhanced one of RFC 3463.
Texts may be reworded; codes, statuses and reasons stay.

Each refusal of a message is a line `rejected` in the [mail log](mail-log.md), and counted by reason in `postroad_ingress_rejections_total`; connections that are refused are counted in `postroad_net_smtp_refused_total`.
Why receivers refuse mail is [another page](replies.md).

## Refusals of a message

Over gRPC the status has the reason in `google.rpc.ErrorInfo`, with the domain `postroad`; `google.rpc.BadRequest` names the field where one is at fault, and `google.rpc.RetryInfo` is there where nothing was stored.

| SMTP | gRPC | reason | |
|---|---|---|---|
";

const GRPC_ONLY: &str = "
## Errors of a gRPC call

Whatever the message:

| gRPC | reason | |
|---|---|---|
";

const SESSION: &str = "
## Errors of an SMTP session

| reply | |
|---|---|
";

const EXIT: &str = "
## How commands end

The exit status of every command of `postroad`:

| status | |
|---|---|
";

/// The name of a status as the gRPC documentation spells it.
fn status(code: Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

fn reply(reply: &Reply) -> String {
    let enhanced = reply.enhanced.map_or(String::new(), |code| format!(" {code}"));
    format!("{}{enhanced} {}", reply.code, reply.text)
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for refusal in refusals() {
        let (said, code) = (reply(&refusal.reply), status(refusal.code));
        writeln!(page, "| {said} | {code} | `{}` | {} |", refusal.reason, refusal.meaning).unwrap();
    }
    page.push_str(GRPC_ONLY);
    for error in GrpcError::ALL {
        let (code, reason) = error.code_and_reason();
        writeln!(page, "| {} | `{reason}` | {} |", status(code), error.meaning()).unwrap();
    }
    page.push_str(SESSION);
    for error in SessionError::ALL {
        writeln!(page, "| {} | {} |", reply(&error.reply_with("…")), error.meaning()).unwrap();
    }
    page.push_str(EXIT);
    for line in EXIT_STATUS_HELP.lines().skip(1) {
        let (status, meaning) = line.trim().split_once("  ").unwrap();
        writeln!(page, "| {status} | {meaning} |").unwrap();
    }
    page
}

#[test]
fn the_page_of_errors_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/errors.md");
    let page = page();
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/reference/errors.md is old: run with POSTROAD_WRITE_DOCS=1");
}

#[test]
fn temporary_errors_are_temporary_in_both_protocols() {
    for refusal in refusals() {
        let temporary = (400..500).contains(&refusal.reply.code);
        assert_eq!(temporary, refusal.code == Code::Unavailable, "{refusal:?}");
    }
}
