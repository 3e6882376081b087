//! The replies of `corpus.tsv` against the built-in rules, and what holds for any reply.

use std::collections::BTreeSet;

use postroad_core::{OutcomeKind, Reply};
use postroad_shaping::{LaneEffect, Party, Phase, Retry, Rules, Verdict, read_reply};
use proptest::prelude::*;

/// D-050 asks for this many.
const REPLIES_MIN: usize = 500;

fn lines() -> impl Iterator<Item = &'static str> {
    include_str!("corpus.tsv").lines().filter(|line| !line.starts_with('#'))
}

/// kind, class, party, suppress, lane and rule, as the columns of the corpus have them.
fn columns(verdict: &Verdict<'_>) -> String {
    let Some(refusal) = verdict.refusal() else { return "delivered\t-\t-\tno\tnone\t-".to_owned() };
    let suppress = if refusal.ending.suppresses() { "yes" } else { "no" };
    let kind = refusal.ending.kind();
    format!("{kind}\t{}\t{}\t{suppress}\t{}\t{}", refusal.class, refusal.party, refusal.lane, refusal.rule)
}

fn classify(phase: &str, reply: &str) -> String {
    let phase = Phase::from_name(phase).unwrap_or_else(|| panic!("`{phase}` is a phase"));
    let reply = read_reply(reply).unwrap_or_else(|error| panic!("{error}"));
    columns(&Rules::builtin().classify(phase, None, &reply))
}

#[test]
fn d_050_every_reply_of_the_corpus_is_read_as_it_says() {
    let mut wrong = Vec::new();
    for line in lines() {
        let (phase, rest) = line.split_once('\t').expect("a line has columns");
        let (reply, expected) = rest.split_once('\t').expect("a line has columns");
        let found = classify(phase, reply);
        if found != expected {
            wrong.push(format!("{phase} {reply}\n  expected {expected}\n  found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines().count() >= REPLIES_MIN);
}

#[test]
fn d_050_every_rule_has_a_reply_in_the_corpus() {
    let covered: BTreeSet<&str> = lines().filter_map(|line| line.rsplit('\t').next()).collect();
    let rules = Rules::builtin().list().iter();
    let missing: Vec<&str> = rules.map(|rule| rule.name()).filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "no line of corpus.tsv names {missing:?}");
}

#[test]
fn d_052_a_blocklist_never_reads_as_a_bad_recipient_whatever_its_code() {
    let texts = [
        "rejected, listed at zen.spamhaus.org",
        "user unknown; your IP 192.0.2.1 is on our blocklist",
        "blocked using a blocklist",
        "[TSS09] all messages from 192.0.2.1 will be permanently deferred",
        "part of your network is on our block list (S3150)",
    ];
    for code in ["550 5.1.1", "550", "553 5.1.2", "554 5.2.1", "551 5.1.6"] {
        for text in texts {
            let found = classify("rcpt", &format!("{code} {text}"));
            assert!(found.starts_with("policy_block\tspam_block\tip\tno\tpause"), "{code} {text}: {found}");
        }
    }
}

#[test]
fn d_052_what_is_said_of_anybody_but_the_recipient_never_suppresses() {
    let replies = [
        "rcpt 550 5.1.1 Sender unknown",
        "rcpt 550 5.1.0 The sending user does not exist",
        "rcpt 550 5.1.1 Invalid user in MAIL FROM",
        "rcpt 550 Your account does not exist here, relaying denied",
        "rcpt 550 5.7.1 Client user account disabled",
        "rcpt 550 5.1.8 Sender account is suspended",
        "rcpt 550 account suspended for sending spam, contact your provider",
        "rcpt 550-Postmaster verification failed\\n550-Response: 550 <maria@shop.example>: User unknown\\n550 rejected",
        "rcpt 550 Sender verification failed; remote host said: 550 5.1.1 User unknown",
        "rcpt 550 Sender: remote host said: 550 5.1.1 User unknown",
        "rcpt 550 5.1.1 too many unknown users, connection blocked",
        "rcpt 550 We found too many users that do not exist in your mail",
        "rcpt 550 5.7.1 unusual invalid recipients",
        "rcpt 550 Host unknown: 198.51.100.7 not found in DNS",
        "rcpt 550 Server not found: user database unavailable",
        "rcpt 550 5.1.1 directory service down, user not found",
        "rcpt 550 User does not exist or quota exceeded, may be either",
        "rcpt 550 The domain of the user is suspended",
        "rcpt 550 hosting account suspended",
        "rcpt 550 5.2.1 mailbox disabled for your domain by policy",
        "rcpt 550 user has been temporarily suspended",
        "rcpt 550 feature disabled for this account",
        "rcpt 550 The user database is not available",
        "rcpt 550 Mailbox delivery agent not found",
        "rcpt 535 5.7.8 user unknown or password wrong",
        "rcpt 550 The address you send from is not a valid user here",
        "rcpt 550 Mail account maria@shop.example is locked for sending",
        "rcpt 550 Your IP 198.51.100.7 was used by an account that is suspended",
        "rcpt 550 licence for mailbox protection has expired",
        "rcpt 550 The mail filter of this customer is disabled",
        "rcpt 550 user is on holiday, mailbox closed until 2 January",
        "dot 550 image links expired, account newsletter refused",
        "data 503 all recipients are invalid",
        "mail 550 5.1.1 no such user",
        "mail 550 5.1.1 no such user on this system",
        "mail 550 5.2.1 mailbox disabled",
        "ehlo 501 5.1.1 unknown user or host",
        "rcpt 550 shop.example is a closed system, users get mail only from addresses that are approved",
        "rcpt 550 shop.example: domain is suspended, contact your provider",
        "rcpt 550 The server at 198.51.100.7 tried to deliver to users that do not exist, it is blocked now",
        "connect 554 no such user",
        "dot 550 user-agent not found",
        "dot 550 reply-to address is unknown",
        "dot 550 5.6.0 invalid recipient header, address not valid",
        "dot 550 link points to a disabled account page",
        "dot 550 Your message to a closed list was not accepted, mailbox is restricted",
        "rcpt 550 Postmaster address of post.example does not exist, mail refused",
        "rcpt 550 user of this IP is unknown to us",
        "rcpt 550 plain text login disabled for users",
        "rcpt 550 5.7.1 message to user expired in our queue",
        "rcpt 550 SMTP access for this account is disabled",
        "dot 550 one of the recipients does not exist, message dropped for all",
        "dot 550 5.2.0 RESOLVER.ADR.BadPrimary; recipient primary SMTP address is missing or invalid",
        "rcpt 550 Message sending for this account is disabled",
        "rcpt 550 Outgoing mail of the account is suspended",
        "dot 503 No valid recipients were given",
        "dot 554 5.1.1 Transaction failed",
        "rcpt 550 5.1.1 Out of memory",
        "rcpt 550 5.2.1 Scanning stopped",
        "rcpt 550 5.1.1 Licence expired",
        "rcpt 550 5.2.1 The password is frozen",
        "rcpt 550 5.1.1 Account database was archived",
        "rcpt 550 5.1.1 Your login has expired",
        "rcpt 550 5.1.1 The account you send from is inactive",
        "rcpt 550 The employee directory was not found",
        "rcpt 550 The account manager has been suspended",
        "rcpt 550 This mailbox rule does not exist",
        "rcpt 550 The address range is locked",
        "dot 550 5.2.1 The message is closed",
        "dot 554 5.3.0 maria@shop.example: an unknown error happened",
        "rcpt 550 5.1.1 No thanks",
        "rcpt 550 maria@shop.example: not configured",
        "dot 552 maria@shop.example: file type .js in an archive is forbidden",
        "dot 554 maria@shop.example invalid data in message",
    ];
    for line in replies {
        let (phase, reply) = line.split_once(' ').expect("a phase and a reply");
        let found = classify(phase, reply);
        assert!(!found.contains("\tyes\t"), "{line}: {found}");
    }
}

#[test]
fn d_035_552_to_a_recipient_is_too_many_and_elsewhere_permanent() {
    assert!(classify("rcpt", "552 too many recipients").starts_with("soft\ttoo_many_recipients"));
    assert!(classify("rcpt", "552 not now").starts_with("soft\ttoo_many_recipients"));
    assert!(classify("rcpt", "552 5.2.2 mailbox full").starts_with("soft\tquota"));
    assert!(classify("mail", "552 message size exceeds limit").starts_with("hard\ttoo_big"));
}

#[test]
fn a_rule_of_another_provider_is_passed_over() {
    let rules = Rules::parse(
        "rule of_one\n why one provider only\n provider one\n words full\n 5yz soft quota recipient\n\
         rule rest\n why the rest\n 4yz soft other receiver\n 5yz hard other receiver\n",
    );
    let rules = rules.expect("the rules are well formed");
    let reply = Reply::plain(550, "full");
    let rule = |provider| rules.classify(Phase::Rcpt, provider, &reply).refusal().map(|refusal| refusal.rule);
    assert_eq!(rule(Some("one")), Some("of_one"));
    assert_eq!(rule(None), Some("of_one"));
    assert_eq!(rule(Some("two")), Some("rest"));
}

#[test]
fn only_the_beginning_of_a_long_reply_is_read() {
    let rule = |padding: usize| {
        let reply = Reply::plain(550, format!("{}: user unknown", "é ".repeat(padding)));
        Rules::builtin().classify(Phase::Rcpt, None, &reply).refusal().map(|refusal| refusal.rule.to_owned())
    };
    assert_eq!(rule(1000).as_deref(), Some("recipient_unknown"));
    assert_eq!(rule(20_000).as_deref(), Some("default_rcpt"));
}

#[test]
fn a_refusal_by_policy_is_tried_a_few_times_at_long_distance_or_not_at_all() {
    let retry = |phase, reply: &str| {
        let reply = read_reply(reply).expect("a reply");
        Rules::builtin().classify(phase, None, &reply).refusal().map(|refusal| refusal.ending.retry())
    };
    let listed = "550 5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org";
    assert!(matches!(retry(Phase::Rcpt, listed), Some(Retry::Distant { tries_max }) if tries_max.get() == 3));
    assert_eq!(retry(Phase::Connect, listed), Some(Retry::Normal));
    assert_eq!(retry(Phase::Rcpt, "450 4.7.1 192.0.2.1 is on our blocklist"), Some(Retry::Normal));
    assert_eq!(retry(Phase::Rcpt, "550 5.1.1 user unknown"), Some(Retry::Never));
    assert_eq!(retry(Phase::Dot, "250 ok"), None);
}

#[test]
fn the_reference_page_has_every_word_and_every_rule() {
    const TABLE: &str = "| rule | why |\n|---|---|\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/replies.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let (before, _old) = page.split_once(TABLE).expect("the page has a table of rules");
    let rows = Rules::builtin().list().iter().map(|rule| format!("| `{}` | {} |\n", rule.name(), rule.why()));
    let made = format!("{before}{TABLE}{}", rows.collect::<String>());
    if std::env::var_os("POSTROAD_WRITE_DOCS").is_some() {
        std::fs::write(path, &made).expect("the page can be written");
    }
    let page = std::fs::read_to_string(path).expect("the page is there");
    assert!(page == made, "replies.md is old; POSTROAD_WRITE_DOCS=1 writes it again");
    let phases = Phase::ALL.iter().map(|phase| format!("| `{phase}` |"));
    let parties = Party::ALL.iter().map(|party| format!("`{party}`"));
    let effects = LaneEffect::ALL.iter().map(|effect| format!("`{effect}`"));
    for word in phases.chain(parties).chain(effects) {
        assert!(before.contains(&word), "the page does not name {word}");
    }
}

proptest! {
    #[test]
    fn a_4yz_never_ends_a_delivery_and_no_text_panics(
        code in 400u16..600,
        phase in proptest::sample::select(Phase::ALL),
        text in proptest::string::string_regex("(?s)([45]\\.[0-7]\\.[0-9]{1,3} )?(user|mailbox|ip|blocked|unknown|full|spam|relay|tls|sender|\\PC| |\n){0,30}").expect("a pattern"),
    ) {
        let verdict = Rules::builtin().classify(phase, None, &Reply::plain(code, text));
        if code < 500 {
            prop_assert_ne!(verdict.kind(), OutcomeKind::Hard);
        }
        if let Some(refusal) = verdict.refusal() {
            prop_assert!(!refusal.ending.suppresses() || refusal.party == Party::Recipient);
        }
    }
}
