//! The command line: clap types, one file per verb, a client, and the renderers.
//!
//! The types here are the source of `--help` and of the man pages. A verb's file has its arguments
//! and its `run`; only [`render`] writes to stdout; only `main` ends the process.

mod action;
mod client;
mod commands;
mod daemonize;
mod environment;
mod error;
mod load_test;
mod log_folders;
mod progress;
mod render;
mod reread;
mod settings;
mod systemctl;
mod targets;
mod unit;
mod values;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{CommandFactory, Parser, Subcommand};

use client::Client;
use error::{CliError, DONE, USAGE};
use render::Output;

use crate::paths::Paths;
use crate::sys::process;

/// Process supervisor: zero-downtime reloads of unmodified web apps in any language.
#[derive(Debug, Parser)]
#[command(
    name = "rsup",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Begin with:\n  rsup init                       write a supervisor.toml\n  rsup start                      start what it describes\n  rsup start server.js -i 2       or do without a file\n  rsup reload api                 a new version, without a failed request\n  rsup up                         or, for any deploy: start, reload, as the file says"
)]
pub struct Cli {
    /// Print the result as one JSON document
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Start(Box<commands::start::Args>),
    Up(commands::up::Args),
    Stop(commands::stop::Args),
    Restart(commands::restart::Args),
    Reload(commands::reload::Args),
    Delete(commands::delete::Args),
    Scale(commands::scale::Args),
    List(commands::list::Args),
    Describe(commands::describe::Args),
    Logs(commands::logs::Args),
    Events(commands::events::Args),
    Env(commands::env::Args),
    Signal(commands::signal::Args),
    Check(commands::check::Args),
    Init(commands::init::Args),
    Demo(commands::demo::Args),
    Verify(commands::verify::Args),
    Ping(commands::ping::Args),
    Upgrade(commands::upgrade::Args),
    Kill(commands::kill::Args),
    Startup(commands::startup::Args),
    Unstartup(commands::unstartup::Args),
    #[command(hide = true)]
    AfterService(commands::after_service::Args),
    #[command(name = crate::daemon::REREAD, hide = true)]
    Reread(commands::reread::Args),
    #[command(hide = true)]
    Daemon(commands::daemon::Args),
    #[command(hide = true)]
    SampleApp(commands::sample_app::Args),
}

/// The context of every verb.
#[derive(Debug)]
pub struct Context {
    pub out: Output,
}

impl Context {
    /// The folders of the daemon that the command means.
    fn paths(&self) -> Result<Paths, CliError> {
        Paths::from_env().map_err(CliError::usage)
    }

    /// The environment of this shell, for apps.
    fn base_env(&self) -> BTreeMap<String, String> {
        let (env, odd) = environment::of_caller();
        if !odd.is_empty() {
            self.out.note(&format!(
                "not UTF-8 and therefore not handed on: {}",
                odd.join(", ")
            ));
        }
        env
    }

    /// A client of that daemon, whether or not it runs.
    fn client(&self) -> Result<Client, CliError> {
        Client::new(&self.paths()?)
    }
}

/// The description of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line; returns the exit code of the process.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    process::outlive_file_size_limit();
    let args: Vec<OsString> = args.into_iter().collect();
    // First: the keeper must stay small.
    if args.get(1).is_some_and(|verb| verb == "keeper") {
        return crate::keeper::run();
    }
    if args
        .get(1)
        .is_some_and(|verb| verb == crate::keeper::binds::VERB)
    {
        return crate::keeper::binds::run();
    }
    // A process of a worker's user that makes one system call.
    if args
        .get(1)
        .is_some_and(|verb| verb == crate::sys::takeover::TRIAL)
    {
        return crate::sys::takeover::run_trial();
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version end here too, with code 0. A failure to print them cannot be shown
            // anywhere.
            drop(error.print());
            return if error.exit_code() == 0 { DONE } else { USAGE };
        }
    };
    let cx = Context {
        out: Output::new(cli.json),
    };
    match dispatch(cli.verb, &cx) {
        Ok(()) => DONE,
        Err(problem) => {
            cx.out.problem(&problem);
            problem.exit()
        }
    }
}

fn dispatch(verb: Verb, cx: &Context) -> Result<(), CliError> {
    match verb {
        Verb::Start(args) => commands::start::run(*args, cx),
        Verb::Up(args) => commands::up::run(args, cx),
        Verb::Stop(args) => commands::stop::run(args, cx),
        Verb::Restart(args) => commands::restart::run(args, cx),
        Verb::Reload(args) => commands::reload::run(args, cx),
        Verb::Delete(args) => commands::delete::run(args, cx),
        Verb::Scale(args) => commands::scale::run(args, cx),
        Verb::List(args) => commands::list::run(args, cx),
        Verb::Describe(args) => commands::describe::run(args, cx),
        Verb::Logs(args) => commands::logs::run(args, cx),
        Verb::Events(args) => commands::events::run(args, cx),
        Verb::Env(args) => commands::env::run(args, cx),
        Verb::Signal(args) => commands::signal::run(args, cx),
        Verb::Check(args) => commands::check::run(args, cx),
        Verb::Init(args) => commands::init::run(args, cx),
        Verb::Demo(args) => commands::demo::run(args, cx),
        Verb::Verify(args) => commands::verify::run(args, cx),
        Verb::Ping(args) => commands::ping::run(args, cx),
        Verb::Upgrade(args) => commands::upgrade::run(args, cx),
        Verb::Kill(args) => commands::kill::run(args, cx),
        Verb::Startup(args) => commands::startup::run(args, cx),
        Verb::Unstartup(args) => commands::unstartup::run(args, cx),
        Verb::AfterService(args) => commands::after_service::run(args, cx),
        Verb::Reread(args) => commands::reread::run(args, cx),
        Verb::Daemon(args) => commands::daemon::run(args, cx),
        Verb::SampleApp(args) => commands::sample_app::run(args, cx),
    }
}
