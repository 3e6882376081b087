//! `postroad support bundle`: what others need to help, in one archive, without mail or secrets.
//!
//! Every file is made of what has no secrets in the first place; `redact` is the second guard, for what people write
//! into settings and what programs write into logs.

mod archive;
mod redact;

use std::{
    fmt::Write as _,
    fs::File,
    io::{IsTerminal, Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, ensure};
use postroad_core::GroupId;
use postroad_directory::View;
use postroad_proto::queue::{SummaryRequest, queue_service_client::QueueServiceClient};

use self::{archive::Archive, redact::redact};
use crate::{
    cli::doctor::{SupportBundleArgs, SupportCommand},
    config,
    doctor::{self, NodeSetup, http_get},
    nodes,
    operator::Operator,
    output::{self, Format},
    policy::{Policy, to_yaml},
};

/// The part of a log file that is included.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// Runs `postroad support`.
///
/// # Errors
/// A configuration cannot be read, or the archive cannot be written. What cannot be gathered is named in the archive.
pub async fn run(command: &SupportCommand) -> anyhow::Result<String> {
    let SupportCommand::Bundle(args) = command;
    // A terminal would show bytes.
    ensure!(
        args.file != Path::new("-") || !std::io::stdout().is_terminal(),
        "expected standard output to be a file or a pipe where `--file` is `-`"
    );
    let files = gather(args).await?;
    let mut archive = Archive::new(postroad_env::wall());
    let mut names = String::new();
    for (name, text) in &files {
        archive.add(name, redact(text).as_bytes())?;
        let _ = writeln!(names, "  {name}");
    }
    let archive = archive.finish();
    if args.file == Path::new("-") {
        output::print_bytes(&archive)?;
        output::complain(&format!("wrote the archive to standard output:\n{}", names.trim_end()));
        return Ok(String::new());
    }
    let written = postroad_net::authority::write_secret(&args.file, &archive);
    let file = args.file.display();
    written.with_context(|| format!("cannot write `{file}` (`--file`)"))?;
    Ok(format!("wrote {file}:\n{names}look into it before you give it to others: `tar xf {file}`\n"))
}

/// The files of the archive, each with its name.
type Files = Vec<(String, String)>;

async fn gather(args: &SupportBundleArgs) -> anyhow::Result<Files> {
    let mut files: Files = vec![("README.txt".to_owned(), readme())];
    let findings = doctor::findings(args.role, &args.target).await?;
    files.push(("doctor.txt".to_owned(), Format::Table.show(&findings)?));
    let (operator, setup) = match args.role {
        None => (Operator::connect(&args.target)?, None),
        Some(role) => {
            let path = doctor::config_of(&args.target)?;
            let setup = NodeSetup::read(role, &path)?;
            files.push(("settings.toml".to_owned(), config::print(role, &path)?));
            (Operator::of_node(&setup.cluster)?, Some(setup))
        }
    };
    files.push(("nodes.txt".to_owned(), listed(&operator).await));
    files.push(("queue.txt".to_owned(), summaries(&operator).await));
    files.push(("policy.yaml".to_owned(), policy(&operator).await));
    files.push(("machine.txt".to_owned(), machine()));
    if let Some(setup) = &setup {
        for (name, path) in [("metrics.txt", "/metrics"), ("readyz.txt", "/readyz")] {
            files.push((name.to_owned(), page(setup, path).await));
        }
    }
    for (number, log) in args.log.iter().enumerate() {
        let tail = tail(log).with_context(|| format!("cannot read `{}` (`--log`)", log.display()))?;
        files.push((format!("log-{}.txt", number + 1), tail));
    }
    Ok(files)
}

fn readme() -> String {
    format!(
        "postroad {} support bundle, made at {}\n\n\
         doctor.txt     what `postroad doctor --no-probe` finds\n\
         nodes.txt      the nodes that have announced themselves to each queue node\n\
         queue.txt      the counts of each group\n\
         policy.yaml    the policy in force, without keys and passwords\n\
         machine.txt    this machine: kernel, memory, load, limits\n\
         settings.toml  the settings in effect, with a role\n\
         metrics.txt    the metrics of the node, with a role\n\
         readyz.txt     what is not ready, with a role\n\
         log-N.txt      the end of each file of --log\n\n\
         Left out: mail, keys, passwords and their verifiers; what looks like one is replaced by (removed), also in logs.\n\
         In it: names of tenants, their sender domains, logins, sources and their addresses, sites of receivers;\n\
         the names of the variables POSTROAD..., and with a role the settings that they set;\n\
         addresses of senders and recipients where a log of --log has them.\n",
        env!("CARGO_PKG_VERSION"),
        postroad_env::wall()
    )
}

async fn listed(operator: &Operator) -> String {
    let mut text = String::new();
    for (queue, list) in nodes::lists(operator).await {
        match list {
            Ok(list) => {
                let _ = writeln!(text, "queue {queue}: clock {} ms ahead", list.clock.offset_millis);
                for node in &list.nodes {
                    let _ = writeln!(
                        text,
                        "  {} at {}: version {}, started {}, clock {} ms ahead, seen {}",
                        nodes::name(node),
                        node.address,
                        node.about.version,
                        node.about.started_at,
                        node.clock.map_or_else(|| "?".to_owned(), |clock| clock.offset_millis.to_string()),
                        nodes::seen(node.age)
                    );
                }
            }
            Err(status) => {
                let _ = writeln!(text, "queue {queue}: {}", nodes::cause(&status));
            }
        }
    }
    text
}

/// The counts of each group, as its leader has them.
async fn summaries(operator: &Operator) -> String {
    let mut text = String::new();
    for group in (1..=GroupId::LEDGERS_MAX).map(GroupId) {
        let request = SummaryRequest { group: u32::from(group.0) };
        let call = async |channel| QueueServiceClient::new(channel).summary(request).await;
        match operator.calls().call(group, std::time::Duration::from_secs(5), call).await {
            Ok(response) => {
                let _ = writeln!(text, "group {group}: {:?}", response.into_inner());
            }
            // The first number without a group.
            Err(postroad_cluster::CallError::Refused { code: tonic::Code::NotFound, .. }) => break,
            Err(error) => {
                let _ = writeln!(text, "group {group}: {error}");
                break;
            }
        }
    }
    text
}

async fn policy(operator: &Operator) -> String {
    let of = |view: &View| to_yaml(&Policy::of(view, |_| true), view.revision());
    match operator.watched_view().await {
        Ok(view) => of(&view).unwrap_or_else(|error| format!("# {error}\n")),
        Err(error) => format!("# {error}\n"),
    }
}

fn machine() -> String {
    let system = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mut text =
        format!("system: {} {} {}\n", part(system.sysname()), part(system.release()), part(system.machine()));
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut ours: Vec<String> = variables.filter(|name| name.starts_with("POSTROAD")).collect();
    ours.sort();
    let _ = writeln!(text, "variables that are set: {}", ours.join(", "));
    for file in
        ["/proc/loadavg", "/proc/meminfo", "/proc/self/limits", "/proc/self/cgroup", "/etc/os-release"]
    {
        let found = std::fs::read_to_string(file).unwrap_or_else(|error| format!("{error}\n"));
        let _ = write!(text, "\n== {file}\n{found}");
    }
    text
}

async fn page(setup: &NodeSetup, path: &str) -> String {
    match http_get(setup.metrics, path).await {
        Ok((_, page)) => page,
        Err(error) => format!("{}: {error}\n", setup.metrics),
    }
}

/// The end of a file, from the beginning of a line on.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let whole = if start == 0 { 0 } else { text.find('\n').map_or(0, |end| end + 1) };
    Ok(text[whole..].to_owned())
}
