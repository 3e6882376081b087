//! What a credential of a policy file gives as its secret, and what is stored for it.

use argon2::{Argon2, PasswordHasher, PasswordVerifier, password_hash::phc::PasswordHash};
use postroad_directory::{Item, Kind, Secret, View};

use super::{CredentialPolicy, Place, Problem};

/// What a credential gives.
#[derive(Clone, Debug)]
pub(super) enum Given<'p> {
    ApiKey {
        sha256: [u8; 32],
    },
    Password {
        name: &'p str,
        login: &'p str,
        password: &'p str,
    },
    Verifier {
        login: &'p str,
        verifier: &'p str,
    },
    /// The cluster's own for this name, as an exported policy says.
    Stored {
        name: &'p str,
        login: Option<&'p str>,
    },
    Networks {
        relay: bool,
    },
}

const ONE_OF: &str = "expected one of `api_key`, `api_key_sha256`, `login` with `password` or `password_hash`, \
    `stored_secret: true`, or `networks` alone";

impl<'p> Given<'p> {
    /// Reads what a credential gives.
    ///
    /// # Errors
    /// It gives nothing, or more than one.
    pub(super) fn of(credential: &'p CredentialPolicy, place: &Place) -> Result<Self, Problem> {
        let problem = |key: &str, expected: &str| Err(Problem::new(place.key(key), expected));
        if credential.relay && !credential.is_by_networks_alone() {
            return problem("relay", "expected only in a credential by `networks` alone");
        }
        let CredentialPolicy { name, api_key, api_key_sha256, login, password, password_hash, .. } =
            credential;
        let keys = (api_key.as_deref(), api_key_sha256.as_deref());
        let passwords = (password.as_deref(), password_hash.as_deref());
        match (keys, login.as_deref(), passwords, credential.stored_secret) {
            ((Some(key), None), None, (None, None), false) if key.len() < 16 => {
                problem("api_key", "expected at least 16 characters")
            }
            ((Some(key), None), None, (None, None), false) => {
                Ok(Self::ApiKey { sha256: sha256(key.as_bytes()) })
            }
            ((None, Some(digest)), None, (None, None), false) => match hexadecimal(digest) {
                Some(sha256) => Ok(Self::ApiKey { sha256 }),
                None => problem("api_key_sha256", "expected 64 hexadecimal digits"),
            },
            ((None, None), Some(login), (Some(password), None), false) => {
                Ok(Self::Password { name, login, password })
            }
            ((None, None), Some(_), (None, Some(hash)), false) if PasswordHash::new(hash).is_err() => {
                problem("password_hash", "expected an argon2id verifier as a PHC string")
            }
            ((None, None), Some(login), (None, Some(verifier)), false) => {
                Ok(Self::Verifier { login, verifier })
            }
            ((None, None), login, (None, None), true) => Ok(Self::Stored { name, login }),
            ((None, None), Some(_), (None, None), false) => {
                problem("login", "expected a `password` with it, or `stored_secret: true`")
            }
            ((None, None), None, (None, None), false) if !credential.networks.is_empty() => {
                Ok(Self::Networks { relay: credential.relay })
            }
            _ => Err(Problem::new(place.clone(), ONE_OF)),
        }
    }

    /// Returns a secret of the same kind, for checks that need no secret.
    pub(super) fn placeholder(&self) -> Secret {
        let login = |login: &str| Secret::Login { login: login.into(), verifier: "$argon2".into() };
        match self {
            Self::ApiKey { sha256 } => Secret::ApiKey { sha256: *sha256 },
            Self::Password { login: name, .. } | Self::Verifier { login: name, .. } => login(name),
            Self::Stored { login: Some(name), .. } => login(name),
            Self::Stored { login: None, .. } => Secret::ApiKey { sha256: [0; 32] },
            Self::Networks { relay } => Secret::Network { relay: *relay },
        }
    }

    /// Returns what is to be stored. A password that the stored verifier accepts keeps that verifier: a new one would differ,
    /// and applying a file twice would change something.
    ///
    /// # Errors
    /// The cluster has nothing stored that could stay.
    pub(super) fn secret(&self, stored: &View) -> Result<Secret, String> {
        match *self {
            Self::ApiKey { sha256 } => Ok(Secret::ApiKey { sha256 }),
            Self::Verifier { login, verifier } => {
                Ok(Secret::Login { login: login.into(), verifier: verifier.into() })
            }
            Self::Networks { relay } => Ok(Secret::Network { relay }),
            Self::Password { name, login, password } => {
                let verifier = match stored_secret(stored, name) {
                    Some(Secret::Login { verifier, .. }) if accepts(&verifier, password) => verifier,
                    _ => hash(password)?.into(),
                };
                Ok(Secret::Login { login: login.into(), verifier })
            }
            Self::Stored { name, login } => match (stored_secret(stored, name), login) {
                (Some(Secret::Login { verifier, .. }), Some(login)) => {
                    Ok(Secret::Login { login: login.into(), verifier })
                }
                (Some(secret @ Secret::ApiKey { .. }), None) => Ok(secret),
                _ => Err("the cluster has no key or password for this credential: give one instead of \
                    `stored_secret`"
                    .to_owned()),
            },
        }
    }
}

fn stored_secret(stored: &View, name: &str) -> Option<Secret> {
    match stored.item(Kind::Credential, name)? {
        Item::Credential(credential) => Some(credential.secret.clone()),
        _ => None,
    }
}

fn accepts(verifier: &str, password: &str) -> bool {
    let hash = PasswordHash::new(verifier);
    hash.is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Hashes a password with argon2id and the parameters that the `argon2` crate recommends.
fn hash(password: &str) -> Result<String, String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|error| format!("cannot hash the password: {error}"))?.to_string())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let digits = text.bytes().map(|byte| char::from(byte).to_digit(16));
    let digits: Vec<u8> = digits.map(|digit| digit?.try_into().ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    bytes.try_into().ok()
}
