//! `rsup events`: what happened, from the file to which the daemon writes events. So it needs no
//! daemon, and survives the death of one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cli::Context;
use crate::cli::error::CliError;
use crate::cli::render::EventLines;
use crate::config::AppName;
use crate::daemon::event_log::{self, Recorded};
use crate::logs::{Follower, Stream};

/// Show what happened to apps: starts, reloads, exits, and why; follow it with -f
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Each event has a number, counted over all apps, that no other one gets; with --json it is `seq`.\nWhat is kept is bounded: some 8 MB of the latest events.\n\nExamples:\n  rsup events\n  rsup events api -f\n  rsup events --since 1200 --json"
)]
pub struct Args {
    /// Names; all apps without one
    #[arg(value_name = "APP")]
    apps: Vec<String>,
    /// Go on with each new event until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the last events
    #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
    lines: usize,
    /// All events after the one of this number
    #[arg(long, value_name = "SEQ", conflicts_with = "lines")]
    since: Option<u64>,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let path = cx.paths()?.events();
    let names: Vec<AppName> = args
        .apps
        .iter()
        .filter(|name| *name != "all")
        .map(|name| AppName::parse(name).map_err(CliError::usage))
        .collect::<Result<_, _>>()?;
    let wanted = |recorded: &Recorded| names.is_empty() || names.contains(&recorded.event.app);
    let all = past(&path)?;
    let last = all.last().map_or(0, |recorded| recorded.seq);
    let mut shown: Vec<&Recorded> = all.iter().filter(|recorded| wanted(recorded)).collect();
    match args.since {
        Some(seq) => shown.retain(|recorded| recorded.seq > seq),
        None => drop(shown.drain(..shown.len().saturating_sub(args.lines))),
    }
    let show = EventLines::new(&cx.out, names.len() == 1);
    show.write(shown.iter().copied())?;
    if args.follow {
        return follow(path, last, wanted, &show);
    }
    if all.is_empty() {
        cx.out
            .note("nothing has happened yet; `rsup start` starts something");
    } else if shown.is_empty() && args.since.is_none() {
        cx.out
            .note("nothing is known of that; `rsup list` shows which apps there are");
    }
    Ok(())
}

fn past(path: &Path) -> Result<Vec<Recorded>, CliError> {
    let mut all = Vec::new();
    for path in [event_log::before(path), path.to_owned()] {
        match event_log::read(&path) {
            Ok(found) => all.extend(found),
            Err(why) if why.kind() == ErrorKind::NotFound => {}
            Err(why) => {
                let what = format!("cannot read {}: {why}", path.display());
                return Err(CliError::failed("local", what));
            }
        }
    }
    Ok(all)
}

fn follow(
    path: PathBuf,
    mut last: u64,
    wanted: impl Fn(&Recorded) -> bool,
    show: &EventLines,
) -> Result<(), CliError> {
    let failed =
        |why: std::io::Error| CliError::failed("local", format!("cannot follow the events: {why}"));
    // From the beginning of the file: that includes events written since it was read.
    let mut follower = Follower::new([(Stream::Out, path)], None, usize::MAX).map_err(failed)?;
    loop {
        let lines = follower.next().map_err(failed)?;
        let new = lines
            .iter()
            .filter_map(|(_, line)| serde_json::from_slice::<Recorded>(line).ok());
        let new: Vec<Recorded> = new.filter(|recorded| recorded.seq > last).collect();
        last = new.last().map_or(last, |recorded| recorded.seq);
        show.write(new.iter().filter(|recorded| wanted(recorded)))?;
    }
}
