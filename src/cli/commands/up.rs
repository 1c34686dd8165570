//! `rsup up`.

use std::path::{Path, PathBuf};

use super::start;
use crate::cli::error::CliError;
use crate::cli::targets::same_file;
use crate::cli::{Context, action, daemonize};
use crate::config::{AppName, AppSpec};
use crate::control::{Action, Known, Outcome, Snapshot, Untouched};
use crate::core::OperationKind;

/// Start or reload the apps of a file, whatever runs: the one command for every deploy
///
/// It starts the daemon if none runs, starts the apps of the file that are not up (stopped ones too), and
/// reloads all that are, whether or not their settings have changed, since their code may have: one by
/// one, without a failed request. An app of the same name that runs from another folder or file moves
/// here by such a reload. Apps that were started from the file and are no longer in it go on, which is
/// said; with --prune they are stopped and forgotten. So are those of the former release, where files differ in
/// one folder of their paths alone (releases/41/supervisor.toml, releases/42/supervisor.toml).
///
/// It waits for its turn behind actions that are under way, and until the truth is known. The exit
/// code is 1 if an app could not be brought up; one that could not be reloaded goes on as it was.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup up\n  rsup up /srv/shop/current/supervisor.toml --prune"
)]
pub struct Args {
    /// The file
    #[arg(value_name = "FILE", default_value = "supervisor.toml")]
    file: PathBuf,
    /// Only these apps of the file
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// Stop and forget apps that are no longer in the file
    #[arg(long, conflicts_with = "only")]
    prune: bool,
    /// Use the environment of this shell for apps that are reloaded too
    #[arg(long)]
    update_env: bool,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let paths = cx.paths()?;
    let (apps, settings) = start::from_file(&args.file, &args.only, cx)?;
    let base_env = cx.base_env();
    let mut waits = start::Waits::default();
    let outcomes = loop {
        let client = daemonize::ensure(&paths)?;
        let known = match client.try_ask(&Snapshot) {
            Ok(known) => known,
            Err(error) => {
                waits.for_the_end(&paths, &client, error, cx)?;
                continue;
            }
        };
        let gone = if args.only.is_empty() {
            no_longer_there(&settings.source, &apps, &known)
        } else {
            Vec::new()
        };
        let up = Action::Up {
            apps: apps.clone(),
            base_env: base_env.clone(),
            update_env: args.update_env,
            prune: if args.prune {
                gone.iter().map(|known| known.spec.name.clone()).collect()
            } else {
                Vec::new()
            },
        };
        let settings = vec![settings.clone()];
        match action::sent(&cx.out, &client, up, settings, !args.no_wait) {
            Ok(mut outcomes) => {
                action::same_folders(&apps, &known).note(&mut outcomes);
                say_changes(&apps, &known, cx);
                if !args.prune {
                    outcomes.extend(gone.into_iter().map(goes_on));
                }
                break outcomes;
            }
            Err(error) => waits.for_the_end(&paths, &client, error, cx)?,
        }
    };
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}

/// What is new for apps that the daemon knew.
fn say_changes(apps: &[AppSpec], known: &[Known], cx: &Context) {
    for app in apps {
        let Some(Known { spec: old, .. }) = known.iter().find(|known| known.spec.name == app.name)
        else {
            continue;
        };
        let name = &app.name;
        if old.source != app.source {
            let from = match &old.source {
                Some(file) => file.display().to_string(),
                None => old.cwd.display().to_string(),
            };
            cx.out.note(&format!("{name} is here from {from}"));
        }
        let differences = old.differences(app);
        if !differences.is_empty() {
            cx.out
                .note(&format!("{name}: new settings: {}", differences.join(", ")));
        }
    }
}

/// Apps of the file as it was, or of the release before, that are not in it now.
fn no_longer_there<'a>(file: &Path, apps: &[AppSpec], known: &'a [Known]) -> Vec<&'a Known> {
    let of_file = |known: &&Known| {
        let source = known.spec.source.as_deref();
        source.is_some_and(|source| same_file(source, file) || is_release_of(source, file))
    };
    let gone = |known: &&Known| apps.iter().all(|app| app.name != known.spec.name);
    known.iter().filter(of_file).filter(gone).collect()
}

/// The same path but for one folder, as those of releases beside each other are.
fn is_release_of(one: &Path, other: &Path) -> bool {
    let (one, other) = (one.components(), other.components());
    one.clone().count() == other.clone().count()
        && one.clone().next_back() == other.clone().next_back()
        && one.zip(other).filter(|(a, b)| a != b).count() == 1
}

fn goes_on(known: &Known) -> Outcome {
    let app: AppName = known.spec.name.clone();
    Outcome {
        app,
        kind: OperationKind::Delete,
        took_ms: 0,
        view: Some(known.view.clone()),
        failure: None,
        untouched: Some(Untouched::NotInFile),
        notes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_two_releases() {
        let same = |one: &str, other: &str| is_release_of(Path::new(one), Path::new(other));
        assert!(same(
            "/srv/a/releases/41/s.toml",
            "/srv/a/releases/42/s.toml"
        ));
        assert!(!same(
            "/srv/a/releases/41/s.toml",
            "/srv/b/releases/42/s.toml"
        ));
        assert!(!same("/srv/a/s.toml", "/srv/a/t.toml"));
        assert!(!same("/srv/a/s.toml", "/srv/s.toml"));
        assert!(!same("/srv/a/s.toml", "/srv/a/s.toml"));
    }
}
