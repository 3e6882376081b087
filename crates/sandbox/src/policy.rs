//! The sandbox's SMTP policy: accept everything.

use std::{net::IpAddr, sync::Arc};

use postroad_core::Reply;
use postroad_net::smtp::server::{Policy, Session};
use postroad_smtp::server::{Answer, Question};

use crate::store::Store;

/// Accepts every login, sender and recipient, and captures every message.
#[derive(Debug)]
pub(crate) struct CaptureAll {
    pub(crate) store: Arc<Store>,
}

impl Policy for CaptureAll {
    type Identity = ();

    fn network_identity(&self, _: IpAddr) -> Option<()> {
        None
    }

    async fn decide(&self, _: Session<'_, ()>, question: Question) -> Answer<()> {
        match question {
            Question::Authenticate(_) => Answer::Identity(()),
            Question::Sender(_) | Question::Recipient(_) => Answer::Yes,
            Question::Message(message) => {
                let store = Arc::clone(&self.store);
                let add =
                    move || store.add(message.mail.sender, message.recipients.into_vec(), message.content);
                // The store may write a file.
                match postroad_env::blocking(add).await.map_err(std::io::Error::from) {
                    Ok(Ok(id)) => Answer::Reply(Reply::new(250, 0, 0, format!("captured as {id}"))),
                    Ok(Err(error)) | Err(error) => {
                        tracing::error!(%error, "cannot keep a captured message");
                        Answer::Reply(Reply::new(451, 3, 0, "the sandbox cannot keep the message; try again"))
                    }
                }
            }
        }
    }
}
