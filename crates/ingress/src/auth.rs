//! Who a client is: logins against argon2 verifiers, API keys against digests, networks by address.
//!
//! A password is checked on threads of its own, few at a time, since argon2 is meant to be slow.
//! So that a client that connects for every message does not cost that every time, a good pair of verifier and password
//! is remembered as a MAC under a key that this process drew; a verifier that changes makes it worthless.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use aws_lc_rs::{digest, hmac};
use parking_lot::Mutex;
use postroad_directory::{Credential, Item, Kind, Secret, Tenant, View};
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

use crate::metrics::Metrics;

/// Passwords that wait to be checked; with more, clients are told to come back.
const WAITING_MAX: usize = 256;
/// Good pairs that are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Who a client is, until its credential is withdrawn.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    credential: Arc<Credential>,
}

/// What came of a check.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Good(Identity),
    /// For whatever reason: the client is not told more.
    Wrong,
    /// Not to be told just now: no directory yet, or too many wait.
    Untold,
}

/// Checks what clients say of themselves against the directory as it is.
pub(crate) struct Authenticator {
    directory: watch::Receiver<Arc<View>>,
    remembered: Remembered,
    /// Threads that check at a time.
    checking: Arc<Semaphore>,
    /// Those and the ones that wait for them.
    waiting: Semaphore,
    metrics: Arc<Metrics>,
}

impl Identity {
    /// The credential's name and kind, for people.
    pub(crate) fn origin(&self, client: Option<IpAddr>) -> String {
        let kind = match self.credential.secret {
            Secret::ApiKey { .. } => "key",
            Secret::Login { .. } => "login",
            Secret::Network => "network",
        };
        let name: String = self.credential.name.chars().take(48).collect();
        client.map_or_else(|| format!("{kind} {name}"), |client| format!("{kind} {name} from {client}"))
    }

    /// Returns the tenant it speaks for, unless the credential was changed or withdrawn since.
    pub(crate) fn tenant(&self, view: &View) -> Option<Arc<Tenant>> {
        match view.item(Kind::Credential, &self.credential.name) {
            Some(Item::Credential(now))
                if Arc::ptr_eq(now, &self.credential) || **now == *self.credential =>
            {
                view.tenant(now.tenant).cloned()
            }
            _ => None,
        }
    }
}

impl Authenticator {
    pub(crate) fn new(directory: watch::Receiver<Arc<View>>, metrics: Arc<Metrics>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        // Not while the first stranger waits.
        LazyLock::force(&NOBODY);
        Self {
            directory,
            remembered: Remembered::new(),
            checking: Arc::new(Semaphore::new(threads)),
            waiting: Semaphore::new(WAITING_MAX),
            metrics,
        }
    }

    /// Returns who every client at this address is, where the address alone says it.
    pub(crate) fn network(&self, client: IpAddr) -> Option<Identity> {
        let credential = self.view().network(client).cloned()?;
        Some(Identity { credential })
    }

    /// Checks an API key.
    pub(crate) fn api_key(&self, key: &str, client: IpAddr) -> Verdict {
        let view = self.view();
        if view.revision() == 0 {
            return self.note(Verdict::Untold);
        }
        let verdict = find_api_key(&view, key, client).map_or(Verdict::Wrong, Verdict::Good);
        self.note(verdict)
    }

    /// Checks a login and its password; an API key counts as a password, whatever the login.
    pub(crate) async fn login(&self, login: &str, secret: Zeroizing<Box<str>>, client: IpAddr) -> Verdict {
        let view = self.view();
        if view.revision() == 0 {
            return self.note(Verdict::Untold);
        }
        if let Some(identity) = find_api_key(&view, &secret, client) {
            return self.note(Verdict::Good(identity));
        }
        let credential = view.login(login).cloned();
        let verifier: &str = match credential.as_deref().map(|credential| &credential.secret) {
            Some(Secret::Login { verifier, .. }) => verifier,
            // A login that does not exist takes as long as one that does.
            _ => &NOBODY,
        };
        let proof = self.remembered.proof(verifier, &secret);
        let remembered = self.remembered.holds(login, &proof);
        let good = if remembered { Some(true) } else { self.verify(verifier, secret).await };
        let verdict = match (good, credential) {
            (None, _) => Verdict::Untold,
            (Some(true), Some(credential)) if credential.counts_at(client) => {
                if remembered {
                    self.metrics.login_cached.increment(1);
                    return Verdict::Good(Identity { credential });
                }
                self.remembered.insert(login, proof);
                Verdict::Good(Identity { credential })
            }
            _ => Verdict::Wrong,
        };
        self.note(verdict)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.directory.borrow())
    }

    fn note(&self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Good(_) => self.metrics.login_good.increment(1),
            Verdict::Wrong => self.metrics.login_wrong.increment(1),
            Verdict::Untold => self.metrics.login_untold.increment(1),
        }
        verdict
    }

    /// Runs argon2 on a thread; `None` when too many wait already.
    async fn verify(&self, verifier: &str, secret: Zeroizing<Box<str>>) -> Option<bool> {
        let _waiting = self.waiting.try_acquire().ok()?;
        let permit = Arc::clone(&self.checking).acquire_owned().await.ok()?;
        let verifier = verifier.to_owned();
        let check = move || {
            // The thread goes on when the client is gone: the permit goes with it.
            let _permit = permit;
            Argon2::default().verify_password(secret.as_bytes(), verifier.as_str()).is_ok()
        };
        tokio::task::spawn_blocking(check).await.ok()
    }
}

fn find_api_key(view: &View, key: &str, client: IpAddr) -> Option<Identity> {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    let digest: &[u8; 32] = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
    let credential = view.api_key(digest).filter(|credential| credential.counts_at(client)).cloned()?;
    Some(Identity { credential })
}

/// A verifier that no password fits, with the costs of our own.
static NOBODY: LazyLock<String> = LazyLock::new(|| {
    let password = rand::random::<[u8; 32]>();
    let hashed = Argon2::default().hash_password(&password);
    hashed.expect("argon2 takes 32 bytes with its own parameters").to_string()
});

/// Good pairs of verifier and password, as MACs.
struct Remembered {
    key: hmac::Key,
    by_login: Mutex<HashMap<Box<str>, hmac::Tag>>,
}

impl Remembered {
    fn new() -> Self {
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &*key), by_login: Mutex::default() }
    }

    fn proof(&self, verifier: &str, secret: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        // PHC strings hold no NUL, so that no two pairs read the same.
        for part in [verifier, "\0", secret] {
            context.update(part.as_bytes());
        }
        context.sign()
    }

    fn holds(&self, login: &str, proof: &hmac::Tag) -> bool {
        let by_login = self.by_login.lock();
        let known = by_login.get(login).map(hmac::Tag::as_ref);
        known.is_some_and(|known| {
            aws_lc_rs::constant_time::verify_slices_are_equal(known, proof.as_ref()).is_ok()
        })
    }

    fn insert(&self, login: &str, proof: hmac::Tag) {
        let mut by_login = self.by_login.lock();
        if by_login.len() >= REMEMBERED_MAX && !by_login.contains_key(login) {
            by_login.clear();
        }
        by_login.insert(login.into(), proof);
    }
}

#[cfg(test)]
mod tests {
    use postroad_core::{PoolId, TenantId};
    use postroad_directory::{Delta, SenderDomains};

    use super::*;

    /// A directory with one login.
    fn view(revision: u64, verifier: &str) -> Arc<View> {
        let tenant = Tenant {
            id: TenantId(1),
            name: "t".into(),
            domains: SenderDomains::Any,
            pool: PoolId(1),
            message_size_max: None,
        };
        let secret = Secret::Login { login: "anna".into(), verifier: verifier.into() };
        let credential = Credential {
            name: "c".into(),
            tenant: tenant.id,
            secret,
            networks: vec!["127.0.0.0/8".parse().unwrap()],
        };
        let items = vec![Item::Tenant(Arc::new(tenant)), Item::Credential(Arc::new(credential))];
        Arc::new(View::empty().apply(Delta { revision, full: true, items, removed: Vec::new() }))
    }

    fn verifier(password: &str) -> String {
        Argon2::default().hash_password(password.as_bytes()).unwrap().to_string()
    }

    async fn check(
        authenticator: &Authenticator,
        login: &str,
        password: &str,
        from: [u8; 4],
    ) -> &'static str {
        let verdict = authenticator.login(login, Zeroizing::new(password.into()), from.into()).await;
        match verdict {
            Verdict::Good(_) => "good",
            Verdict::Wrong => "wrong",
            Verdict::Untold => "untold",
        }
    }

    #[tokio::test]
    async fn a_good_password_is_remembered_with_its_verifier() {
        let (publish, directory) = watch::channel(Arc::new(View::empty()));
        let authenticator = Authenticator::new(directory, Arc::new(Metrics::new()));
        let here = [127, 0, 0, 1];
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "untold");
        publish.send_replace(view(1, &verifier("secret")));
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "good");
        assert_eq!(check(&authenticator, "anna", "wrong", here).await, "wrong");

        // Whoever has to run argon2 from now on waits for ever.
        let _all = Arc::clone(&authenticator.checking)
            .acquire_many_owned(u32::try_from(authenticator.checking.available_permits()).unwrap())
            .await
            .unwrap();
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "good");
        // The right password from the wrong place is wrong, remembered or not.
        assert_eq!(check(&authenticator, "anna", "secret", [192, 0, 2, 1]).await, "wrong");
        let limit = std::time::Duration::from_millis(50);
        let checked = |password| tokio::time::timeout(limit, check(&authenticator, "anna", password, here));
        assert!(checked("wrong").await.is_err());
        // A new verifier makes what was remembered worthless.
        publish.send_replace(view(2, &verifier("other")));
        assert!(checked("secret").await.is_err());
        let _waiting = authenticator.waiting.acquire_many(WAITING_MAX as u32).await.unwrap();
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "untold");
    }

    #[tokio::test]
    async fn s_310_an_identity_ends_with_its_credential() {
        let (publish, directory) = watch::channel(view(1, "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"));
        let identity = Identity { credential: Arc::clone(directory.borrow().login("anna").unwrap()) };
        assert!(identity.tenant(&directory.borrow()).is_some());
        publish.send_replace(view(2, "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$b3RoZXI"));
        assert!(identity.tenant(&directory.borrow()).is_none());
        publish.send_replace(Arc::new(View::empty()));
        assert!(identity.tenant(&directory.borrow()).is_none());
    }
}
