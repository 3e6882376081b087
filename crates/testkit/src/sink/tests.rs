//! The sink, tested by a client.

use std::time::Duration;

use postroad_net::ClientTls;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{Action, Limits, Phase, Rate, Receiver, ReplyState, Rule, Script, Sink, SinkConfig, Tls};

const LIMIT: Duration = Duration::from_secs(10);

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(sink: &Sink) -> Self {
        let mut client = Self(BufReader::new(TcpStream::connect(sink.address()).await.unwrap()));
        assert!(client.reply().await.starts_with("220 "));
        client
    }

    /// The last line of a reply, empty when the connection has ended.
    async fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(LIMIT, self.0.read_line(&mut line)).await.unwrap();
            if read.is_err() || line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    async fn say(&mut self, line: &str) -> String {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        self.reply().await
    }

    /// Sends a message and returns the reply to each step.
    async fn send(&mut self, recipient: &str) -> Vec<String> {
        let content =
            "Received: from a by b\r\n\tid 01M85FM9W0000G000000000007; x\r\nX-Token: t\r\n\r\n..x\r\n";
        let mut replies = Vec::new();
        for line in
            ["MAIL FROM:<a@b.test>", &format!("RCPT TO:<{recipient}>"), "DATA", &format!("{content}.")]
        {
            replies.push(self.say(line).await);
            if !replies.last().unwrap().starts_with(['2', '3']) {
                break;
            }
        }
        replies
    }
}

async fn sink(script: Script) -> Sink {
    Sink::start(SinkConfig { script, ..SinkConfig::default() }).await.unwrap()
}

fn rules(rules: &[Rule]) -> Receiver {
    Receiver { rules: rules.to_vec(), ..Receiver::default() }
}

fn last(replies: &[String]) -> &str {
    replies.last().map_or("", |reply| reply.as_str())
}

#[tokio::test]
async fn accepted_copies_are_recorded() {
    let sink = sink(Script::default()).await;
    let mut client = Client::connect(&sink).await;
    assert!(client.say("EHLO c.test").await.starts_with("250 "));
    assert!(last(&client.send("x@y.test").await).starts_with("250 "));
    let ledger = sink.ledger();
    assert!(ledger.wait_for_count(1, LIMIT).await);
    let id = "01M85FM9W0000G000000000007".parse().unwrap();
    let copies = ledger.copies_of(id, "x@y.test");
    assert_eq!((copies.len(), copies[0].token.as_deref()), (1, Some("t")));
    assert_eq!((&*copies[0].sender, ledger.bare_newlines()), ("a@b.test", 0));
    client.say("EHLO\n").await;
    assert!(ledger.bare_newlines() > 0);
    assert_eq!(ledger.records()[0].reply, ReplyState::Read, "the client went on");
    assert!(client.reply().await.starts_with("500 "), "the line after the bare one is empty");
    client.send("x@y.test").await;
    sink.stop().await.unwrap();
    assert_eq!(ledger.records()[1].reply, ReplyState::Written, "the client said nothing more");
}

#[tokio::test]
async fn a_transaction_can_be_pipelined_in_one_write() {
    let sink = sink(Script::default()).await;
    let mut client = Client::connect(&sink).await;
    let wire =
        "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<e@f.test>\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n";
    client.0.write_all(wire.as_bytes()).await.unwrap();
    let mut replies = String::new();
    client.0.read_to_string(&mut replies).await.unwrap();
    let codes: Vec<&str> = replies.lines().map(|line| &line[..3]).collect();
    assert_eq!(codes, ["250", "250", "250", "354", "250", "221"]);
    assert_eq!(sink.ledger().count(), 2);
}

#[tokio::test]
async fn a_rule_applies_in_its_phase_and_domain() {
    let later = |phase| Rule::reply(phase, "451 4.7.1 later");
    let script = Script::default()
        .with_rule(Rule { delay_ms: 50, ..Rule::reply(Phase::Connect, "220 slow") })
        .with_domain("rcpt.test", rules(&[later(Phase::Recipient)]))
        .with_domain("data.test", rules(&[later(Phase::Data)]))
        .with_domain("message.test", rules(&[Rule::reply(Phase::Message, "554 5.7.1 no\nnever")]));
    let sink = sink(script).await;
    let before = postroad_env::now();
    let mut client = Client::connect(&sink).await;
    assert!(postroad_env::since(before) >= Duration::from_millis(50));
    for (domain, steps, reply) in
        [("rcpt", 2, "451 4.7.1 later"), ("data", 3, "451 4.7.1 later"), ("message", 4, "554 never")]
    {
        let replies = client.send(&format!("a@{domain}.test")).await;
        assert_eq!((replies.len(), last(&replies).trim_end()), (steps, reply));
        client.say("RSET").await;
    }
    assert_eq!(last(&client.send("a@other.test").await).trim_end(), "250 2.0.0 accepted");
    assert_eq!(sink.ledger().count(), 1);
}

#[tokio::test]
async fn a_message_can_be_accepted_and_its_reply_lost() {
    for then in [Action::Reset, Action::CloseSilently] {
        let rule = Rule { reply: None, then, ..Rule::reply(Phase::Message, "") };
        let sink = sink(Script::default().with_domain("x.test", rules(&[rule]))).await;
        let mut client = Client::connect(&sink).await;
        assert_eq!(last(&client.send("a@x.test").await), "");
        assert!(sink.ledger().wait_for_count(1, LIMIT).await);
        let recorded = async {
            while sink.ledger().records()[0].reply == ReplyState::Open {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, recorded).await.unwrap();
        assert_eq!(sink.ledger().records()[0].reply, ReplyState::Lost);
    }
}

#[tokio::test]
async fn connections_end_as_the_script_says() {
    let end =
        |then, byte_delay_ms| rules(&[Rule { then, byte_delay_ms, ..Rule::reply(Phase::Message, "250 ok") }]);
    let script = Script::default()
        .with_domain("close.test", end(Action::Close, 0))
        .with_domain("half.test", end(Action::HalfClose, 0))
        .with_domain("garbage.test", end(Action::Garbage, 0))
        .with_domain("slow.test", end(Action::GoOn, 10));
    let sink = sink(script).await;
    for (domain, reply, goes_on) in
        [("close", "250 ok", false), ("half", "250 ok", false), ("slow", "250 ok", true)]
    {
        let mut client = Client::connect(&sink).await;
        let before = postroad_env::now();
        assert_eq!(last(&client.send(&format!("a@{domain}.test")).await).trim_end(), reply);
        assert!(domain != "slow" || postroad_env::since(before) >= Duration::from_millis(70));
        client.0.write_all(b"NOOP\r\n").await.unwrap();
        assert_eq!(client.reply().await.starts_with("250"), goes_on, "{domain}");
    }
    let mut client = Client::connect(&sink).await;
    for line in ["MAIL FROM:<>", "RCPT TO:<a@garbage.test>", "DATA"] {
        client.say(line).await;
    }
    client.0.write_all(b".\r\n").await.unwrap();
    let mut bytes = [0; 4];
    client.0.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, *b"\x00\xff\x16\x03");
}

#[tokio::test]
async fn a_retry_after_the_greylist_time_is_accepted() {
    let receiver = Receiver { greylist_secs: Some(0.1), ..Receiver::default() };
    let sink = sink(Script::default().with_domain("x.test", receiver)).await;
    let mut client = Client::connect(&sink).await;
    assert!(last(&client.send("a@x.test").await).starts_with("451"));
    tokio::time::sleep(Duration::from_millis(120)).await;
    client.say("RSET").await;
    assert!(last(&client.send("a@x.test").await).starts_with("250"));
}

#[tokio::test]
async fn limits_are_enforced_and_violations_are_counted() {
    let limits = Limits {
        connections_max: Some(1),
        messages_per_connection_max: Some(2),
        rates: vec![Rate { messages: 3, per_secs: 60.0 }],
        enforce: true,
    };
    let receiver = Receiver { limits, ..Receiver::default() };
    let script = Script { messages_per_connection_max: 5, ..Script::default() };
    let sink = sink(script.with_domain("x.test", receiver)).await;
    let mut first = Client::connect(&sink).await;
    assert!(last(&first.send("a@x.test").await).starts_with("250"));
    let mut second = Client::connect(&sink).await;
    assert!(last(&second.send("a@x.test").await).starts_with("421"));
    assert!(last(&first.send("a@x.test").await).starts_with("250"));
    assert!(last(&first.send("a@x.test").await).starts_with("421"));
    let report = &sink.meters()[0];
    assert_eq!((report.connections_peak, &report.window_peaks[..], report.violations), (2, &[4][..], 3));
    let mut third = Client::connect(&sink).await;
    for _ in 0..5 {
        assert!(last(&third.send("a@other.test").await).starts_with("250"));
    }
    assert_eq!(third.say("MAIL FROM:<>").await.trim_end(), "421 4.7.0 too many messages on this connection");
}

#[tokio::test]
async fn tls_is_offered_as_the_script_says() {
    for (tls, implicit) in [(Tls::Starttls, false), (Tls::Implicit, true)] {
        let sink = sink(Script { tls, ..Script::default() }).await;
        if implicit {
            let stream = TcpStream::connect(sink.address()).await.unwrap();
            let stream = ClientTls::opportunistic().connect(stream, "sink.test").await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            assert!(line.starts_with("220 "));
            continue;
        }
        let mut client = Client::connect(&sink).await;
        assert!(client.say("STARTTLS").await.starts_with("220 "));
        let stream = ClientTls::opportunistic().connect(client.0.into_inner(), "sink.test").await.unwrap();
        let mut stream = BufReader::new(stream);
        let wire = "EHLO c.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nDATA\r\n.\r\nSTARTTLS\r\nQUIT\r\n";
        stream.write_all(wire.as_bytes()).await.unwrap();
        let mut replies = String::new();
        stream.read_to_string(&mut replies).await.unwrap();
        assert!(!replies.contains("250-STARTTLS") && replies.contains("500 5.5.1"), "{replies}");
        assert_eq!(sink.ledger().count(), 1);
    }
}
