//! `postroad send`: submits a message as an application does, and follows it to its final outcome.

mod dialogue;

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use postroad_core::MessageId;
use postroad_net::ClientTls;
use postroad_settings::HostPort;
use serde::Deserialize;
use tokio::{net::TcpStream, time};

use self::dialogue::Dialogue;
use crate::{cli::SendArgs, http, output::line};

/// How often the history is asked.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A login and its password.
struct Credentials {
    login: String,
    password: String,
}

/// The part of the console's answer that is used.
#[derive(Deserialize)]
struct Message {
    deliveries: Vec<Delivery>,
}

#[derive(Clone, Deserialize, PartialEq)]
struct Delivery {
    state: String,
    attempts: u32,
    last_response: String,
}

impl Delivery {
    fn is_final(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "sending" | "deferred" | "held")
    }

    fn describe(&self) -> String {
        let Self { state, attempts, last_response } = self;
        let plural = if *attempts == 1 { "" } else { "s" };
        format!("{state} after {attempts} attempt{plural}: {}", line(last_response))
    }
}

/// Runs `send`.
///
/// # Errors
/// The message is not accepted, or not delivered within the timeout.
pub async fn run(args: &SendArgs) -> anyhow::Result<String> {
    let within = Duration::from_secs(args.timeout);
    let (began, mut text) = (time::Instant::now(), String::new());
    let submitted = time::timeout(within, submit(args)).await;
    let id = submitted.with_context(|| format!("`{}` did not answer in time", args.server))??;
    let _ = writeln!(text, "{id}: accepted by {} after {} ms", args.server, began.elapsed().as_millis());
    let Some(history) = &args.history else { return Ok(text) };
    let mut last = None;
    let ended = time::timeout_at(began + within, outcome(history, id, &mut last)).await;
    let Ok(delivery) = ended else {
        let last = last.unwrap_or_else(|| "not in the history".to_owned());
        bail!("{id} has no final outcome after {} s: {last}", args.timeout);
    };
    ensure!(delivery.state == "delivered", "{id}: {}", delivery.describe());
    let _ = writeln!(text, "{id}: {} ({} ms)", delivery.describe(), began.elapsed().as_millis());
    Ok(text)
}

/// Submits the message and returns its id.
async fn submit(args: &SendArgs) -> anyhow::Result<MessageId> {
    let credentials = args.credentials.as_deref().map(Credentials::read).transpose()?;
    let tls = match &args.authority {
        _ if args.insecure => ClientTls::opportunistic(),
        Some(path) => {
            let pem = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            ClientTls::trusting(&pem)?
        }
        None => ClientTls::verified(),
    };
    let name = args.server_name.as_deref().unwrap_or_else(|| args.server.host().trim_matches(['[', ']']));
    let connected = TcpStream::connect(args.server.as_str()).await;
    let stream = connected.with_context(|| format!("cannot connect to `{}`", args.server))?;
    let refused = || format!("no TLS with `{}` as `{name}`", args.server);
    let mut dialogue = if args.implicit_tls {
        Dialogue::new(tls.connect(stream, name).await.with_context(refused)?)
    } else {
        let mut plain = Dialogue::new(stream);
        plain.greeting().await?;
        plain.command("STARTTLS", 220).await?;
        Dialogue::new(tls.connect(plain.into_stream()?, name).await.with_context(refused)?)
    };
    if args.implicit_tls {
        dialogue.greeting().await?;
    } else {
        dialogue.hello().await?;
    }
    if let Some(Credentials { login, password }) = &credentials {
        dialogue.authenticate(login, password).await?;
    }
    let accepted = dialogue.message(&args.from, &args.to).await?;
    let id = accepted.split(' ').find_map(|word| word.parse().ok());
    id.with_context(|| format!("`{}` accepted the message without an id: {}", args.server, line(&accepted)))
}

impl Credentials {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            anyhow::Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        Ok(Self { login: read("login")?, password: read("password")? })
    }
}

/// Waits for the final outcome; `last` is what is known so far.
async fn outcome(history: &HostPort, id: MessageId, last: &mut Option<String>) -> Delivery {
    loop {
        match ask(history, id).await {
            Ok(Some(delivery)) if delivery.is_final() => return delivery,
            Ok(Some(delivery)) => *last = Some(delivery.describe()),
            Ok(None) => {}
            Err(error) => *last = Some(format!("cannot read the history at `{history}`: {error:#}")),
        }
        time::sleep(ASK_EVERY).await;
    }
}

async fn ask(history: &HostPort, id: MessageId) -> anyhow::Result<Option<Delivery>> {
    let stream = TcpStream::connect(history.as_str()).await?;
    let request = Request::get(format!("/api/v1/messages/{id}")).header(header::HOST, history.as_str());
    match http::request(stream, request.body(Body::empty())?).await? {
        (StatusCode::OK, body) => {
            let message: Message = serde_json::from_slice(&body)?;
            Ok(message.deliveries.into_iter().next())
        }
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (status, _) => bail!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_server_says_cannot_steer_the_terminal() {
        let delivery = Delivery {
            state: "bounced".to_owned(),
            attempts: 1,
            last_response: "550 \u{1b}[2Jno".to_owned(),
        };
        assert_eq!(delivery.describe(), "bounced after 1 attempt: 550 \\u{1b}[2Jno");
        let (client, mut server) = tokio::io::duplex(1024);
        tokio::io::AsyncWriteExt::write_all(&mut server, "554 \u{9b}2Jno\r\n".as_bytes()).await.unwrap();
        let error = Dialogue::new(client).greeting().await.unwrap_err().to_string();
        assert!(error.starts_with("greeting: 554 ") && !error.chars().any(char::is_control), "{error:?}");
    }
}
