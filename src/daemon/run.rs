//! The daemon as a whole: what it inherits, where its messages go, and how its end is reported.

use std::io;
use std::path::PathBuf;

use super::start::Inheritance;
use super::{LAST_WORDS, Options, messages, serve, systemd, takes_over, upgrade};
use crate::logs::{self, Console, stderr};
use crate::paths::Paths;
use crate::sys::needs;

/// Why the daemon could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another rsup daemon runs already (it holds {0})")]
    Running(PathBuf),
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    #[error("{0}")]
    Start(String),
    /// It ran, and this is its exit code; the reason has been logged.
    #[error("ended with code {code}")]
    Ended { code: u8 },
}

pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| match source.raw_os_error() {
        // No thread could be made.
        Some(nix::libc::EAGAIN) => Error::Start(needs::words(&what, &source)),
        _ => Error::System { what, source },
    }
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// When it cannot begin: another one runs, or its folders or socket cannot be had.
pub fn run(paths: Paths, options: Options) -> Result<(), Error> {
    // The program before would not be here without them.
    if !takes_over() {
        needs::check_all().map_err(Error::Start)?;
    }
    let given = upgrade::inherited()
        .transpose()
        .map_err(system("cannot take over from the former program"))?;
    // Before there is a second thread.
    let received = systemd::receive();
    let open = options.open_console;
    let (format, json) = match &given {
        Some((Inheritance { options, .. }, _)) => (options.log_format, options.json_log),
        None => (options.log_format, options.json_log),
    };
    let console = match (format, open) {
        (Some(format), Some(open)) => {
            Some(open(format).map_err(system("cannot start a thread for stdout"))?)
        }
        (Some(_), None) | (None, _) => None,
    };
    let own = match console.clone() {
        Some(console) => {
            messages::on_console(console.clone());
            console
        }
        None => messages::on_stderr(json).map_err(system("cannot start a thread for stderr"))?,
    };
    messages::of_panics(own.clone());
    stderr::rotates(paths.daemon_log());
    let result = run_with(
        &paths,
        Options {
            messages: Some(own),
            ..options
        },
        received,
        given,
        console.clone(),
    );
    if result.is_err() {
        // Its messages wait for no reader either.
        let _ = messages::on_stderr_too();
    }
    stderr::flush();
    if let Some(console) = console {
        // Among objects there is no place for other words.
        if let (Err(why), logs::Format::Json) = (&result, console.format())
            && !matches!(why, Error::Ended { .. })
        {
            console.message("error", None, &why.to_string());
        }
        console.finish(LAST_WORDS);
    }
    result
}

fn run_with(
    paths: &Paths,
    options: Options,
    received: systemd::Received,
    given: Option<(Inheritance, upgrade::Back)>,
    console: Option<Console>,
) -> Result<(), Error> {
    let messages = options.messages.clone();
    let (mut inheritance, back) = match given {
        None => (Inheritance::of_new(paths, options, received)?, None),
        Some((inheritance, back)) => {
            let received = systemd::Received {
                sockets: inheritance.received.sockets,
                ..received
            };
            (
                Inheritance {
                    received,
                    ..inheritance
                },
                Some(back),
            )
        }
    };
    inheritance.options.console = console;
    inheritance.options.messages = messages;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the event loop"))?;
    let result = runtime.block_on(serve(paths, inheritance, back));
    // Tasks that wait for processes which are gone have nothing left to do.
    runtime.shutdown_background();
    result
}
