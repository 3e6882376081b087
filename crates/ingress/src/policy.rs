//! The policy of SMTP sessions: answers their questions.

use std::{net::IpAddr, sync::Arc};

use postroad_core::{Address, Host, Reply};
use postroad_net::smtp::server::{Policy, Session};
use postroad_smtp::{
    command::Mail,
    headers::Protocol,
    server::{Answer, Credentials, Message, Question, SessionError},
    tolerance::Tolerance,
};
use postroad_telemetry::mail_log::Mailbox;

use crate::{
    ListenerService,
    auth::{Authenticator, Identity, Verdict},
    error::Refusal,
    records::{self, Client, Refused},
    submission::{Incoming, SubmissionHandler},
};

/// The policy of one listener.
pub(crate) struct SmtpPolicy {
    pub(crate) service: ListenerService,
    pub(crate) handler: Arc<SubmissionHandler>,
    pub(crate) authenticator: Arc<Authenticator>,
}

impl Policy for SmtpPolicy {
    type Identity = Identity;

    fn network_identity(&self, client: IpAddr) -> Option<Identity> {
        self.authenticator.network(client, self.service)
    }

    fn message_size_max(&self, identity: &Identity) -> Option<u64> {
        self.handler.tenant(identity).ok()?.message_size_max
    }

    async fn decide(&self, session: Session<'_, Identity>, question: Question) -> Answer<Identity> {
        match question {
            Question::Authenticate(credentials) => self.authenticate(&session, credentials).await,
            Question::Sender(mail) => {
                let from = Mailbox::sender(mail.sender.as_ref());
                self.answer(&session, "mail", [from, Mailbox::None], self.sender(&session, &mail))
            }
            Question::Recipient(recipient) => {
                let to = Mailbox::Of(recipient.as_str());
                self.answer(&session, "rcpt", [Mailbox::None, to], self.recipient(&session, &recipient))
            }
            Question::Message(message) => Answer::Reply(self.message(&session, *message).await),
        }
    }

    fn accepting(&self) -> Result<(), Reply> {
        if self.handler.is_accepting() {
            return Ok(());
        }
        Err(SessionError::CannotStore.reply_with(&self.handler.config.hostname))
    }
}

impl SmtpPolicy {
    async fn authenticate(
        &self,
        session: &Session<'_, Identity>,
        credentials: Credentials,
    ) -> Answer<Identity> {
        // Proxy authorization (RFC 4616 2) is not supported.
        let acts_for_itself =
            credentials.authorization.is_empty() || credentials.authorization == credentials.login;
        let address = session.client.ip().to_canonical();
        let verdict = self.authenticator.login(&credentials.login, credentials.secret, address).await;
        let (reason, error) = match verdict {
            Verdict::Valid(identity) if acts_for_itself => return Answer::Identity(identity),
            Verdict::Valid(_) | Verdict::Invalid => ("wrong", SessionError::CredentialsInvalid),
            Verdict::Unavailable => ("unavailable", SessionError::AuthUnavailable),
        };
        records::login_failed(&client_of(session), Mailbox::Of(&credentials.login), reason);
        Answer::Reply(error.reply())
    }

    /// Answers yes, or records the refusal of a sender or a recipient.
    fn answer(
        &self,
        session: &Session<'_, Identity>,
        stage: &'static str,
        [from, to]: [Mailbox<'_>; 2],
        decided: Result<(), Refusal>,
    ) -> Answer<Identity> {
        let Err(refusal) = decided else { return Answer::Yes };
        let tenant = session.identity.and_then(|identity| identity.tenant(&self.handler.view()));
        let client = client_of(session);
        let refused = Refused { stage, client, tenant: tenant.as_deref(), from, to, traceparent: "" };
        records::rejected(&self.handler.metrics, &refused, &refusal);
        Answer::Reply(refusal.reply())
    }

    fn sender(&self, session: &Session<'_, Identity>, mail: &Mail) -> Result<(), Refusal> {
        let Some(identity) = session.identity else {
            return match self.service {
                // Any sender; policy decides on the recipients.
                ListenerService::Relay => Ok(()),
                ListenerService::Submission => Err(Refusal::NoIdentity),
            };
        };
        let tenant = self.handler.tenant(identity)?;
        self.handler.check_sender(&tenant, mail.sender.as_ref(), mail.size)
    }

    fn recipient(&self, session: &Session<'_, Identity>, recipient: &Address) -> Result<(), Refusal> {
        if session.identity.is_none() {
            return Err(Refusal::RelayDenied);
        }
        match recipient.host() {
            Host::Domain(_) => Ok(()),
            Host::Literal(_) => Err(Refusal::RecipientLiteral),
        }
    }

    async fn message(&self, session: &Session<'_, Identity>, message: Message) -> Reply {
        let Some(identity) = session.identity else { return Refusal::RelayDenied.reply() };
        let with = protocol_of(session, message.mail.smtputf8);
        let incoming = Incoming {
            identity,
            sender: message.mail.sender,
            recipients: message.recipients,
            content: message.content,
            tolerant: message.syntax >= Tolerance::FieldName.least(),
            smtputf8: message.mail.smtputf8,
            client: Some(session.client.ip().to_canonical()),
            helo: session.helo,
            with,
            tls: session.tls.map_or("", |tls| &tls.0),
            traceparent: "",
        };
        match self.handler.accept(incoming).await {
            Ok(id) => Reply::new(250, 0, 0, format!("accepted {id}")),
            Err(refusal) => refusal.reply(),
        }
    }
}

fn protocol_of(session: &Session<'_, Identity>, smtputf8: bool) -> Protocol {
    let (tls, authenticated) = (session.tls.is_some(), session.logged_in);
    Protocol::Smtp { extended: session.extended, tls, authenticated, smtputf8 }
}

fn client_of<'a>(session: &Session<'a, Identity>) -> Client<'a> {
    let address = Some(session.client.ip().to_canonical());
    Client { address, protocol: protocol_of(session, false), helo: session.helo }
}
