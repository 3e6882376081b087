//! Runs one command to its end.
//!
//! It is here and not in the binary, so that the code of the roles is compiled once.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{aot, generate};

use crate::{
    certificate, classify,
    cli::{Cli, ClusterCommand, Command, ConfigCommand, Shell, queue::QueueArgs},
    cluster, config, dev, doctor,
    operator::{self, ScopeKind},
    pod, roles, send, support,
};

/// Returns what is to be printed at the end.
///
/// # Errors
/// Those of the command.
pub fn run(command: Command) -> Result<String> {
    let silent = |()| String::new();
    match command {
        Command::Dev(args) if args.cluster => on_runtime(dev::cluster::run(&args)).map(silent),
        Command::Dev(args) => on_runtime(dev::run(&args)).map(silent),
        Command::Ingress(args) => on_runtime(roles::ingress(&args.config)).map(silent),
        Command::Queue(args) => queue(&args),
        Command::Outbound(args) => on_runtime(roles::outbound(&args.config)).map(silent),
        Command::Control(args) => on_runtime(roles::control(&args.config)).map(silent),
        Command::Config(ConfigCommand::Check(args)) => config::check(args.role, &args.config),
        Command::Config(ConfigCommand::Print(args)) => Ok(config::print(args.role, &args.config)?),
        Command::Config(ConfigCommand::Schema(args)) => Ok(config::schema(args.role)),
        Command::Cluster(ClusterCommand::Init(args)) => cluster::init(&args),
        Command::Cluster(ClusterCommand::Join(args)) => cluster::join(&args),
        Command::Cluster(ClusterCommand::Form(args)) => roles::form(&args.config),
        Command::Cluster(ClusterCommand::Rejoin(args)) => roles::rejoin(&args.config),
        Command::Cluster(ClusterCommand::Authority(args)) => on_runtime(pod::authority(&args)),
        Command::Cluster(ClusterCommand::Certificate(args)) => on_runtime(pod::certificate(&args)),
        Command::Cluster(ClusterCommand::Prepare(args)) => on_runtime(pod::prepare(&args)),
        Command::Cluster(ClusterCommand::Formed(args)) => on_runtime(pod::formed(&args)),
        Command::Apply(args) => on_runtime(operator::apply_file(&args)),
        Command::Get(args) => on_runtime(operator::get(&args)),
        Command::Describe(args) => on_runtime(operator::describe(&args)),
        Command::Diff(args) => on_runtime(operator::diff(&args)),
        Command::Export(args) => on_runtime(operator::export(&args)),
        Command::Edit(args) => on_runtime(operator::edit(&args)),
        Command::Delete(args) => on_runtime(operator::delete(&args)),
        Command::Certificate(command) => on_runtime(certificate::run(&command)),
        Command::Doctor(args) => on_runtime(doctor::run(&args)),
        Command::Support(command) => on_runtime(support::run(&command)),
        Command::Message(command) => on_runtime(operator::message(&command)),
        Command::Site(command) => on_runtime(operator::site(&command)),
        Command::Lane(command) => on_runtime(operator::scope(ScopeKind::Lane, &command)),
        Command::Source(command) => on_runtime(operator::scope(ScopeKind::Source, &command)),
        Command::Pool(command) => on_runtime(operator::scope(ScopeKind::Pool, &command)),
        Command::Tenant(command) => on_runtime(operator::scope(ScopeKind::Tenant, &command)),
        Command::Node(command) => on_runtime(operator::scope(ScopeKind::Node, &command)),
        Command::Top(args) => on_runtime(operator::top(&args)),
        Command::Context(command) => operator::context(&command),
        Command::Send(args) => on_runtime(send::run(&args)),
        Command::Idle => on_runtime(pod::idle()).map(silent),
        Command::Classify(args) => classify::run(&args),
        Command::Completion(args) => completion(args.shell),
    }
}

/// Runs the role, or an operator's command about the queue.
fn queue(args: &QueueArgs) -> Result<String> {
    match (&args.command, &args.config) {
        (Some(command), _) => on_runtime(operator::queue(command)),
        (None, Some(config)) => on_runtime(roles::queue(config)).map(|()| String::new()),
        (None, None) => unreachable!("the command line needs a configuration where it has no subcommand"),
    }
}

/// Returns the script for a shell.
fn completion(shell: Shell) -> Result<String> {
    let generator = match shell {
        Shell::Bash => aot::Shell::Bash,
        Shell::Zsh => aot::Shell::Zsh,
        Shell::Fish => aot::Shell::Fish,
    };
    let (mut command, mut script) = (Cli::command(), Vec::new());
    generate(generator, &mut command, "postroad", &mut script);
    Ok(String::from_utf8(script)?)
}

fn on_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
