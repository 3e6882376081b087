//! The configuration file of each role, and `postroad config`.

use std::{error::Error, path::Path};

use postroad_control::ControlConfig;
use postroad_core::NodeId;
use postroad_ingress::IngressConfig;
use postroad_net::{NodeTls, ServerTls, TlsError};
use postroad_outbound::OutboundConfig;
use postroad_queue::QueueConfig;
use postroad_settings::{
    ConfigError, Kind, Problems, Rules, SettingValue, Source, json_schema, require, settings,
};
use postroad_telemetry::TelemetryConfig;

use crate::{
    cli::RoleName,
    sections::{
        ClusterSection, DnsSection, GuardSection, HttpSection, MetricsSection, NodeSection,
        StatelessNodeSection, TlsSection,
    },
    user::User,
};

settings! {
    /// The configuration of an ingress node.
    pub struct IngressFile {
        /// Which node this is.
        node: StatelessNodeSection;
        /// Which cluster the node belongs to.
        cluster: ClusterSection;
        /// What the process logs, and where its traces go.
        telemetry: TelemetryConfig;
        /// Where metrics and health are served.
        metrics: MetricsSection;
        /// The certificate of the listeners.
        tls: TlsSection;
        /// Which DNS resolver is asked.
        dns: DnsSection;
        /// How mail is accepted.
        ingress: IngressConfig;
    }
    rules Self::rules;
}

settings! {
    /// The configuration of a queue node.
    pub struct QueueFile {
        /// Which node this is.
        node: NodeSection;
        /// Which cluster the node belongs to.
        cluster: ClusterSection;
        /// What the process logs, and where its traces go.
        telemetry: TelemetryConfig;
        /// Where metrics and health are served.
        metrics: MetricsSection;
        /// How mail is stored and scheduled.
        queue: QueueConfig;
    }
    rules Self::rules;
}

settings! {
    /// The configuration of an outbound node.
    pub struct OutboundFile {
        /// Which node this is.
        node: NodeSection;
        /// Which cluster the node belongs to.
        cluster: ClusterSection;
        /// What the process logs, and where its traces go.
        telemetry: TelemetryConfig;
        /// Where metrics and health are served.
        metrics: MetricsSection;
        /// Which DNS resolver is asked.
        dns: DnsSection;
        /// Which special-purpose addresses mail may be sent to.
        guard: GuardSection;
        /// How mail is delivered.
        outbound: OutboundConfig;
    }
    rules Self::rules;
}

settings! {
    /// The configuration of a control node.
    pub struct ControlFile {
        /// Which node this is.
        node: NodeSection;
        /// Which cluster the node belongs to.
        cluster: ClusterSection;
        /// What the process logs, and where its traces go.
        telemetry: TelemetryConfig;
        /// Where metrics and health are served.
        metrics: MetricsSection;
        /// Where the console is served.
        http: HttpSection;
        /// How the history is kept.
        control: ControlConfig;
    }
    rules Self::rules;
}

settings! {
    /// The configuration of an operator's machine, for the commands that talk to a cluster.
    pub struct OperatorFile {
        /// Which cluster is meant.
        cluster: ClusterSection;
    }
}

/// The sections that every role has.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The id of the node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: &'a ClusterSection,
    /// What it logs.
    pub telemetry: &'a TelemetryConfig,
    /// Where it serves metrics.
    pub metrics: &'a MetricsSection,
}

/// The configuration file of a role.
pub trait RoleFile: SettingValue + Default {
    /// The role.
    const ROLE: RoleName;

    /// Returns the sections that every role has.
    fn common(&self) -> Common<'_>;

    /// Uses the files that belong together, besides those of the cluster.
    fn check_use(&self, _problems: &mut Problems) {}
}

/// Implements what is the same for every role.
macro_rules! role_files {
    ($($file:ty, $role:ident { $($check:item)? })*) => {$(
        impl RoleFile for $file {
            const ROLE: RoleName = RoleName::$role;

            fn common(&self) -> Common<'_> {
                let Self { node, cluster, telemetry, metrics, .. } = self;
                Common { node: node.id, cluster, telemetry, metrics }
            }

            $($check)?
        }
    )*};
}

role_files! {
    IngressFile, Ingress {
        fn check_use(&self, problems: &mut Problems) {
            let (Some(certificate), Some(key)) = (&self.tls.certificate, &self.tls.key) else { return };
            if problems.concern("tls") {
                return;
            }
            if let Err(error) = ServerTls::from_files(&certificate.0, &key.0) {
                blame_pair(problems, "tls", &error);
            }
        }
    }
    QueueFile, Queue {}
    OutboundFile, Outbound {}
    ControlFile, Control {}
}

/// Only queue nodes have the ids of queue nodes.
macro_rules! is_outside_the_queue {
    ($file:ident, $rules:ident) => {
        require!($rules, $file.node.id, $file.cluster.queue;
            !$file.cluster.has_queue_node($file.node.id), "is the id of a queue node; expected one of its own")
    };
}

impl IngressFile {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        is_outside_the_queue!(self, rules);
        let (ingress, has_tls) = (&self.ingress, self.tls.is_available());
        let needs_tls = ingress.listeners.iter().any(|listener| listener.implicit_tls);
        require!(rules, self.ingress.listeners, self.tls.certificate;
            has_tls || !needs_tls, "`implicit_tls` needs `tls.certificate`");
        require!(rules, self.ingress.grpc_listen, self.tls.certificate;
            ingress.unprotected_grpc(has_tls).is_none(),
            "gRPC without TLS shows API keys; expected `tls.certificate`, an address on loopback, or `ingress.grpc_plaintext = true`");
    }
}

impl QueueFile {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        require!(rules, self.node.id, self.cluster.queue;
            self.cluster.has_queue_node(self.node.id), "expected the id of a node in `cluster.queue`");
    }
}

impl OutboundFile {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        is_outside_the_queue!(self, rules);
    }
}

impl ControlFile {
    fn rules(&self, rules: &mut Rules<'_, '_>) {
        is_outside_the_queue!(self, rules);
    }
}

/// Returns what the files of every role look like.
#[must_use]
pub fn kinds() -> [(&'static str, Kind); 4] {
    fn kind<T: RoleFile>() -> (&'static str, Kind) {
        (T::ROLE.as_str(), T::kind())
    }
    [kind::<IngressFile>(), kind::<QueueFile>(), kind::<OutboundFile>(), kind::<ControlFile>()]
}

/// The environment of a pod or unit may hold settings of several roles: those of sections that this file has not are ignored.
fn source<T: SettingValue>(file: &Path) -> Source {
    let names = |kind: &Kind| -> Vec<&'static str> {
        kind.settings().unwrap_or_default().iter().map(|section| section.name).collect()
    };
    let own = names(&T::kind());
    let others =
        kinds().iter().flat_map(|(_, kind)| names(kind)).filter(|name| !own.contains(name)).collect();
    Source::new(file).ignoring(others)
}

/// Reads a role's file and uses the files that it names as the role would: both `config check` and the role begin with it.
///
/// # Errors
/// Everything that is wrong, together, and as which user the files were opened.
pub(crate) fn load<T: RoleFile>(path: &Path) -> anyhow::Result<T> {
    load_with(path, |file: &T, problems| {
        let common = file.common();
        check_cluster(common.cluster, problems, |tls| check_identity(tls, common, T::ROLE));
        file.check_use(problems);
    })
}

/// Reads an operator's file and uses the files that it names.
///
/// # Errors
/// As for [`load`].
pub(crate) fn load_operator(path: &Path) -> anyhow::Result<OperatorFile> {
    load_with(path, |file: &OperatorFile, problems| check_cluster(&file.cluster, problems, |_| Ok(())))
}

fn load_with<T: SettingValue + Default>(
    path: &Path,
    check: impl FnOnce(&T, &mut Problems),
) -> anyhow::Result<T> {
    let (file, mut problems) = source::<T>(path).opening_files().read::<T>();
    // Where the file itself cannot be read, nothing is known of what it names.
    if !problems.concern("") {
        check(&file, &mut problems);
    }
    match problems.finish() {
        Ok(()) => Ok(file),
        Err(error) => anyhow::bail!("{error}\n  files were opened as {}", User::current()),
    }
}

/// Reads a configuration file with the environment over it, and no file that it names.
///
/// # Errors
/// Everything that is wrong, together.
pub fn read<T: SettingValue + Default>(file: &Path) -> Result<T, ConfigError> {
    let (value, problems) = source::<T>(file).read();
    problems.finish()?;
    Ok(value)
}

/// Calls a function with the type of a role's file.
macro_rules! with_file_of {
    ($role:expr, $function:ident($($argument:expr),*)) => {
        match $role {
            RoleName::Ingress => $function::<IngressFile>($($argument),*),
            RoleName::Queue => $function::<QueueFile>($($argument),*),
            RoleName::Outbound => $function::<OutboundFile>($($argument),*),
            RoleName::Control => $function::<ControlFile>($($argument),*),
        }
    };
}

/// Runs `config check`: reports everything that is wrong with a file and with the files that it names.
///
/// # Errors
/// See [`ConfigError`].
pub fn check(role: RoleName, file: &Path) -> anyhow::Result<String> {
    with_file_of!(role, check_file(file))
}

/// Runs `config print`: returns the settings in effect: the file, the environment and defaults.
///
/// # Errors
/// See [`ConfigError`].
pub fn print(role: RoleName, file: &Path) -> Result<String, ConfigError> {
    with_file_of!(role, print_file(file))
}

/// Runs `config schema`: returns the JSON Schema of a role's file.
#[must_use]
pub fn schema(role: RoleName) -> String {
    let title = format!("The configuration of postroad {}", role.as_str());
    let schema = with_file_of!(role, json_schema(&title));
    format!("{schema:#}\n")
}

fn print_file<T: RoleFile>(file: &Path) -> Result<String, ConfigError> {
    Ok(postroad_settings::print(&read::<T>(file)?))
}

fn check_file<T: RoleFile>(path: &Path) -> anyhow::Result<String> {
    load::<T>(path)?;
    let user = User::current();
    let hint = if user.is_root() { "; check as the user of the service too" } else { "" };
    let role = T::ROLE.as_str();
    Ok(format!("OK: {} configures {role}; files were opened as {user}{hint}\n", path.display()))
}

/// Uses the certificates of the cluster as their owner would; `identify` says whether the certificate is the owner's.
fn check_cluster(
    cluster: &ClusterSection,
    problems: &mut Problems,
    identify: impl FnOnce(&NodeTls) -> Result<(), String>,
) {
    if problems.concern("cluster") || problems.concern("node") {
        return;
    }
    // The pair by itself first: then it is the authority that is wrong.
    if let Err(error) = ServerTls::from_files(&cluster.certificate.0, &cluster.key.0) {
        return blame_pair(problems, "cluster", &error);
    }
    let tls = match cluster.node_tls() {
        Ok(tls) => tls,
        Err(error @ TlsError::Identity(_)) => return problems.blame("cluster.certificate", error),
        Err(error) => return problems.blame("cluster.authority", reason(&error)),
    };
    if let Err(error) = identify(&tls) {
        problems.blame("cluster.certificate", error);
    } else if let Err(error) = tls.verify() {
        problems.blame("cluster.certificate", format!("refused with this `authority`: {}", reason(&error)));
    }
}

/// Says which of two files is to blame.
fn blame_pair(problems: &mut Problems, section: &str, error: &TlsError) {
    let file = if matches!(error, TlsError::Key) { "key" } else { "certificate" };
    problems.blame(&format!("{section}.{file}"), reason(error));
}

/// An error with its causes.
fn reason(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", reason(cause)),
        None => error.to_string(),
    }
}

/// Checks that a certificate is the one of this node: the other nodes would refuse any other.
///
/// # Errors
/// It is of another node, role or cluster.
fn check_identity(tls: &NodeTls, common: Common<'_>, role: RoleName) -> Result<(), String> {
    let found = tls.identity();
    let (cluster, node, role) = (common.cluster.id, common.node, role.as_str());
    if found.cluster == cluster && found.node == node && found.role.name() == role {
        return Ok(());
    }
    Err(format!(
        "is of {} node {} in cluster {}; expected {role} node {node} in cluster {cluster}",
        found.role, found.node, found.cluster
    ))
}
