//! `cluster certificate`: the certificate of a pod, which the pod issues to itself, and issues again while it runs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use postroad_core::Timestamp;
use postroad_net::{Certificate, Role};
use tokio::time::Instant;

use super::SAY_EVERY;
use crate::{
    cli::CertificateArgs,
    cluster::{OPERATOR, read_authority, replace, replace_certificate},
    output, signal,
};

/// How often the files are looked at. A change of the Secret reaches its volume within a minute or two.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Runs `cluster certificate`.
///
/// # Errors
/// The authority cannot be read, or a file cannot be written. With `--renew` both are printed and tried again.
pub async fn certificate(args: &CertificateArgs) -> anyhow::Result<String> {
    ensure!(
        (args.role == Role::Operator) == args.node.is_none(),
        "an operator has no node id: expected no `--node` with `operator`"
    );
    if !args.renew {
        return issue(args);
    }
    let shutdown = signal::shutdown()?;
    shutdown.run_until_cancelled(renew(args)).await;
    Ok(String::new())
}

/// Issues the certificate whenever it is due; never returns.
async fn renew(args: &CertificateArgs) {
    let mut say_at = Instant::now();
    loop {
        match issue_if_due(args) {
            Ok(None) => {}
            Ok(Some(issued)) => output::complain(issued.trim_end()),
            Err(error) if Instant::now() >= say_at => {
                output::complain(&format!("cannot issue the certificate, will try again: {error:#}"));
                say_at = Instant::now() + SAY_EVERY;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn issue_if_due(args: &CertificateArgs) -> anyhow::Result<Option<String>> {
    let file = args.authority.join("authority.pem");
    let authorities =
        fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let present = Present::read(&args.out);
    let Some(reason) = present.due(&authorities, args.lifetime.0, postroad_env::wall()) else {
        return Ok(None);
    };
    Ok(Some(format!("{reason}: {}", issue(args)?)))
}

/// The files that a pod has.
#[derive(Debug)]
struct Present {
    authorities: Option<String>,
    not_after: Option<Timestamp>,
}

impl Present {
    fn read(out: &Path) -> Self {
        let certificate = Certificate::read_first(&out.join("node.pem"));
        Self {
            authorities: fs::read_to_string(out.join("authority.pem")).ok(),
            not_after: certificate.ok().map(|certificate| certificate.not_after),
        }
    }

    /// Returns why the certificate is to be issued again.
    fn due(&self, authorities: &str, lifetime: Duration, now: Timestamp) -> Option<&'static str> {
        match self {
            Self { not_after: None, .. } => Some("no certificate"),
            Self { authorities: trusted, .. } if trusted.as_deref() != Some(authorities) => {
                Some("the authority has changed")
            }
            // The certificate is backdated: its life is longer than what it was issued for.
            Self { not_after: Some(end), .. } if end.since(now) < lifetime / 3 => {
                Some("less than a third of its lifetime is left")
            }
            _ => None,
        }
    }
}

fn issue(args: &CertificateArgs) -> anyhow::Result<String> {
    let CertificateArgs { role, node, authority, out, lifetime, renew: _ } = args;
    let authority = read_authority(authority)?;
    let node = node.unwrap_or(OPERATOR);
    let issued = authority.issue_until(*role, node, &[], postroad_env::wall().after(lifetime.0))?;
    fs::create_dir_all(out).with_context(|| format!("cannot create `{}` (`--out`)", out.display()))?;
    // In this order, a call that is interrupted leaves files that are due.
    replace_certificate(&issued, out, "node")?;
    replace(&out.join("authority.pem"), authority.certificate_pem())?;
    Ok(format!(
        "issued the certificate of {role} node {node} of cluster {} in {}, valid for {lifetime}\n",
        authority.cluster(),
        out.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_issued_again_before_its_end_and_under_another_authority() {
        let lifetime = Duration::from_secs(90);
        let check = |trusted: Option<&str>, end: Option<u64>, now: u64, expected: Option<&str>| {
            let not_after = end.map(|secs| Timestamp::from_millis(secs * 1000));
            let present = Present { authorities: trusted.map(str::to_owned), not_after };
            let due = present.due("ours", lifetime, Timestamp::from_millis(now * 1000));
            assert_eq!(due, expected, "{trusted:?} {end:?} {now}");
        };
        let low = Some("less than a third of its lifetime is left");
        let changed = Some("the authority has changed");
        check(Some("ours"), Some(1000), 910, None);
        check(Some("ours"), Some(1000), 970, None);
        check(Some("ours"), Some(1000), 971, low);
        check(Some("ours"), Some(1000), 2000, low);
        check(Some("ours and new"), Some(1000), 910, changed);
        check(None, Some(1000), 910, changed);
        check(Some("ours"), None, 910, Some("no certificate"));
    }
}
