//! Authenticates clients: logins with argon2 verifiers, API keys with digests, networks by address.
//!
//! Passwords are checked on separate threads, a few at a time, because argon2 is slow by design.
//! A valid pair of verifier and password is cached as a MAC under a random key of this process, so that a client
//! that connects for every message does not pay for argon2 each time. A new verifier invalidates the entry.

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

use crate::{ListenerService, metrics::Metrics};

/// Concurrent logins, running and waiting; more get a temporary failure.
const WAITING_LOGINS_MAX: usize = 256;
/// Entries of the password cache.
const CACHED_PASSWORDS_MAX: usize = 10_000;

/// The credential of an authenticated client.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    credential: Arc<Credential>,
}

/// The result of an authentication.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Valid(Identity),
    /// Wrong credentials; the client does not learn why.
    Invalid,
    /// Cannot be checked now: the directory is not loaded, or too many logins wait.
    Unavailable,
}

/// Checks credentials against the current directory.
pub(crate) struct Authenticator {
    directory: watch::Receiver<Arc<View>>,
    password_cache: PasswordCache,
    /// Threads that run argon2.
    checking: Arc<Semaphore>,
    /// Logins, running and waiting.
    waiting: Semaphore,
    metrics: Arc<Metrics>,
}

impl Identity {
    /// Returns the kind and name of the credential, for logs and pages.
    pub(crate) fn origin(&self, client: Option<IpAddr>) -> String {
        let kind = match self.credential.secret {
            Secret::ApiKey { .. } => "key",
            Secret::Login { .. } => "login",
            Secret::Network { .. } => "network",
        };
        let name: String = self.credential.name.chars().take(48).collect();
        client.map_or_else(|| format!("{kind} {name}"), |client| format!("{kind} {name} from {client}"))
    }

    /// Returns the name of the credential.
    pub(crate) fn name(&self) -> &str {
        &self.credential.name
    }

    /// Returns the tenant of the credential, unless the credential was changed or removed.
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
        // Compute it now, not during the first login.
        LazyLock::force(&DUMMY_VERIFIER);
        Self {
            directory,
            password_cache: PasswordCache::new(),
            checking: Arc::new(Semaphore::new(threads)),
            waiting: Semaphore::new(WAITING_LOGINS_MAX),
            metrics,
        }
    }

    /// Returns the identity of a client by its address alone, if its network is a credential for this service.
    ///
    /// Strangers connect to `relay` listeners, and a balancer in front of one may show its own address for
    /// theirs: there a network counts only where its credential says so.
    pub(crate) fn network(&self, client: IpAddr, service: ListenerService) -> Option<Identity> {
        let credential = self.view().network(client).cloned()?;
        let counts = match service {
            ListenerService::Submission => true,
            ListenerService::Relay => matches!(credential.secret, Secret::Network { relay: true }),
        };
        counts.then_some(Identity { credential })
    }

    /// Checks an API key.
    pub(crate) fn api_key(&self, key: &str, client: IpAddr) -> Verdict {
        let view = self.view();
        if view.revision() == 0 {
            return self.count(Verdict::Unavailable);
        }
        let verdict = find_api_key(&view, key, client).map_or(Verdict::Invalid, Verdict::Valid);
        self.count(verdict)
    }

    /// Checks a login and its password. An API key is accepted as the password of any login.
    pub(crate) async fn login(&self, login: &str, secret: Zeroizing<Box<str>>, client: IpAddr) -> Verdict {
        let view = self.view();
        if view.revision() == 0 {
            return self.count(Verdict::Unavailable);
        }
        if let Some(identity) = find_api_key(&view, &secret, client) {
            return self.count(Verdict::Valid(identity));
        }
        let credential = view.login(login).cloned();
        let verifier: &str = match credential.as_deref().map(|credential| &credential.secret) {
            Some(Secret::Login { verifier, .. }) => verifier,
            // An unknown login must take as long as a known one.
            _ => &DUMMY_VERIFIER,
        };
        let mac = self.password_cache.mac(verifier, &secret);
        let cached = self.password_cache.contains(login, &mac);
        let valid = if cached { Some(true) } else { self.verify(verifier, secret).await };
        let verdict = match (valid, credential) {
            (None, _) => Verdict::Unavailable,
            (Some(true), Some(credential)) if credential.counts_at(client) => {
                if cached {
                    self.metrics.login_cached.increment(1);
                    return Verdict::Valid(Identity { credential });
                }
                self.password_cache.insert(login, mac);
                Verdict::Valid(Identity { credential })
            }
            _ => Verdict::Invalid,
        };
        self.count(verdict)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.directory.borrow())
    }

    fn count(&self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Valid(_) => self.metrics.login_good.increment(1),
            Verdict::Invalid => self.metrics.login_wrong.increment(1),
            Verdict::Unavailable => self.metrics.login_unavailable.increment(1),
        }
        verdict
    }

    /// Runs argon2 on a thread; returns `None` when too many logins wait.
    async fn verify(&self, verifier: &str, secret: Zeroizing<Box<str>>) -> Option<bool> {
        let _waiting = self.waiting.try_acquire().ok()?;
        let permit = Arc::clone(&self.checking).acquire_owned().await.ok()?;
        let verifier = verifier.to_owned();
        let check = move || {
            // The thread may outlive the client, so it owns the permit.
            let _permit = permit;
            Argon2::default().verify_password(secret.as_bytes(), verifier.as_str()).is_ok()
        };
        postroad_env::blocking(check).await.ok()
    }
}

fn find_api_key(view: &View, key: &str, client: IpAddr) -> Option<Identity> {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    let digest: &[u8; 32] = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
    let credential = view.api_key(digest).filter(|credential| credential.counts_at(client)).cloned()?;
    Some(Identity { credential })
}

/// A verifier that matches no password and costs as much as a real one.
static DUMMY_VERIFIER: LazyLock<String> = LazyLock::new(|| {
    let password = postroad_env::random::<[u8; 32]>();
    let hashed = Argon2::default().hash_password(&password);
    hashed.expect("argon2 accepts 32 bytes with its default parameters").to_string()
});

/// A cache of valid pairs of verifier and password, as MACs.
struct PasswordCache {
    key: hmac::Key,
    by_login: Mutex<HashMap<Box<str>, hmac::Tag>>,
}

impl PasswordCache {
    fn new() -> Self {
        let key = Zeroizing::new(postroad_env::random::<[u8; 32]>());
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &*key), by_login: Mutex::default() }
    }

    fn mac(&self, verifier: &str, secret: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        // PHC strings contain no NUL, so no two pairs give the same input.
        for part in [verifier, "\0", secret] {
            context.update(part.as_bytes());
        }
        context.sign()
    }

    fn contains(&self, login: &str, mac: &hmac::Tag) -> bool {
        let by_login = self.by_login.lock();
        let known = by_login.get(login).map(hmac::Tag::as_ref);
        known.is_some_and(|known| {
            aws_lc_rs::constant_time::verify_slices_are_equal(known, mac.as_ref()).is_ok()
        })
    }

    fn insert(&self, login: &str, mac: hmac::Tag) {
        let mut by_login = self.by_login.lock();
        if by_login.len() >= CACHED_PASSWORDS_MAX && !by_login.contains_key(login) {
            by_login.clear();
        }
        by_login.insert(login.into(), mac);
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
            Verdict::Valid(_) => "valid",
            Verdict::Invalid => "invalid",
            Verdict::Unavailable => "unavailable",
        }
    }

    #[tokio::test]
    async fn a_valid_password_is_cached_with_its_verifier() {
        let (publish, directory) = watch::channel(Arc::new(View::empty()));
        let authenticator = Authenticator::new(directory, Arc::new(Metrics::new()));
        let here = [127, 0, 0, 1];
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "unavailable");
        publish.send_replace(view(1, &verifier("secret")));
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "valid");
        assert_eq!(check(&authenticator, "anna", "wrong", here).await, "invalid");

        // From here on a login that needs argon2 waits forever.
        let _all = Arc::clone(&authenticator.checking)
            .acquire_many_owned(u32::try_from(authenticator.checking.available_permits()).unwrap())
            .await
            .unwrap();
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "valid");
        // The right password from a forbidden network is invalid, cached or not.
        assert_eq!(check(&authenticator, "anna", "secret", [192, 0, 2, 1]).await, "invalid");
        let limit = std::time::Duration::from_millis(50);
        let checked = |password| tokio::time::timeout(limit, check(&authenticator, "anna", password, here));
        assert!(checked("wrong").await.is_err());
        // A new verifier invalidates the cache entry.
        publish.send_replace(view(2, &verifier("other")));
        assert!(checked("secret").await.is_err());
        let _waiting = authenticator.waiting.acquire_many(WAITING_LOGINS_MAX as u32).await.unwrap();
        assert_eq!(check(&authenticator, "anna", "secret", here).await, "unavailable");
    }

    #[tokio::test]
    async fn s_310_an_identity_is_invalid_once_its_credential_is_changed_or_removed() {
        let (publish, directory) = watch::channel(view(1, "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"));
        let identity = Identity { credential: Arc::clone(directory.borrow().login("anna").unwrap()) };
        assert!(identity.tenant(&directory.borrow()).is_some());
        publish.send_replace(view(2, "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$b3RoZXI"));
        assert!(identity.tenant(&directory.borrow()).is_none());
        publish.send_replace(Arc::new(View::empty()));
        assert!(identity.tenant(&directory.borrow()).is_none());
    }
}
