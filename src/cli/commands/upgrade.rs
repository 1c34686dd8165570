//! `rsup upgrade`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cli::client::CallError;
use crate::cli::error::CliError;
use crate::cli::{Context, render};
use crate::control::{AskHowUpgraded, HowUpgraded, Ping, Pong, Upgrade, Upgrading};
use crate::paths;

/// Replace the running rsup by another version, with workers and sockets untouched
///
/// The daemon becomes the new program in place: same pid, same workers, no connection lost. The new
/// program is tried first; one that cannot run or cannot read the state changes nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup upgrade                     to the rsup that this command is\n  rsup upgrade /opt/rsup-2/rsup"
)]
pub struct Args {
    /// The new rsup; by default this one
    #[arg(value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// Break connections that rsup itself is passing on, instead of waiting for their end
    #[arg(long)]
    force: bool,
}

/// How long the new program may take until it answers.
const PATIENCE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(20);

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let program = match args.program {
        Some(given) => std::path::absolute(&given)
            .map_err(|error| CliError::usage(format!("{}: {error}", given.display())))?,
        None => paths::program(),
    };
    let client = cx.client()?;
    let Pong {
        version: before, ..
    } = client.ask(&Ping)?;
    let token = fastrand::u64(..);
    match client.try_ask(&Upgrade {
        program: program.clone(),
        token,
        force: args.force,
    }) {
        // Without an answer the upgrade may have happened all the same.
        Ok(Upgrading) | Err(CallError::Broken(_)) => {}
        Err(error) => return Err(client.explain(error)),
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.try_ask(&AskHowUpgraded(token)) {
            Ok(HowUpgraded::Done { version }) => {
                let done = render::Upgraded {
                    program,
                    before,
                    version,
                };
                cx.out.result("`rsup upgrade`", &done, &done.to_string());
                return Ok(());
            }
            Ok(HowUpgraded::Failed { why }) => {
                return Err(CliError::failed("upgrade", why)
                    .hint("rsup list: workers and sockets are untouched"));
            }
            Ok(HowUpgraded::UnderWay | HowUpgraded::Unknown) | Err(CallError::Broken(_)) => {}
            Err(error) => return Err(client.explain(error)),
        }
        if Instant::now() >= deadline {
            let what = format!(
                "it is not known what became of the upgrade\nwaited {} s",
                PATIENCE.as_secs()
            );
            return Err(
                CliError::failed("timeout", what).hint("rsup ping tells the version that runs")
            );
        }
        std::thread::sleep(POLL);
    }
}
