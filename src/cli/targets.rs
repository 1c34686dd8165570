//! Resolves the words of a command line to apps.

use std::path::Path;

use super::client::{CallError, Client};
use super::error::CliError;
use super::{Context, systemctl};
use crate::config::{AppName, AppSpec};
use crate::control::{Known, Outcome, Snapshot, Target, Untouched};
use crate::core::OperationKind;

/// The targets of a command, and the apps that the daemon knows.
#[derive(Debug)]
pub struct Selection {
    /// Each target once, in the order of the command line; only `All` if all apps are meant.
    pub targets: Vec<Target>,
    /// All apps that the daemon knows.
    pub known: Vec<Known>,
    /// Apps that were given by name, not by `all` or a file.
    named: Vec<AppName>,
}

impl Selection {
    /// The apps that the targets belong to, each once.
    pub fn apps(&self) -> Vec<&Known> {
        let meant = |known: &&Known| {
            self.targets.iter().any(|target| match target {
                Target::All => true,
                Target::App(app) | Target::Worker(app, _) => *app == known.spec.name,
            })
        };
        self.known.iter().filter(meant).collect()
    }

    /// The apps that the targets belong to, without stopped ones that were not given by name: these
    /// stay as they are, as the outcomes say.
    pub fn apps_that_run(&self, kind: OperationKind) -> (Vec<&Known>, Vec<Outcome>) {
        let apps = self.apps().into_iter();
        let (stay, run): (Vec<_>, Vec<_>) =
            apps.partition(|known| !known.is_up() && !self.named.contains(&known.spec.name));
        let left = stay.into_iter().map(|known| Outcome {
            app: known.spec.name.clone(),
            kind,
            took_ms: 0,
            view: Some(known.view.clone()),
            failure: None,
            untouched: Some(Untouched::Stopped),
            notes: Vec::new(),
        });
        (run, left.collect())
    }

    /// For verbs that take whole apps only: an error on a single worker.
    pub fn whole_apps(self, verb: &str) -> Result<Self, CliError> {
        match self
            .targets
            .iter()
            .find(|target| matches!(target, Target::Worker(..)))
        {
            Some(Target::Worker(app, instance)) => {
                let problem = CliError::usage(format!(
                    "`{app}:{instance}` is one worker; {verb} is for whole apps"
                ));
                Err(problem.hint(format!(
                    "rsup {verb} {app}, or rsup signal TERM {app}:{instance}"
                )))
            }
            _ => Ok(self),
        }
    }
}

/// Looks up names, `name:worker`, `all` and files. One unknown word is an error, and nothing is
/// done.
pub fn select(client: &Client, words: &[String]) -> Result<Selection, CliError> {
    resolve(words, client.ask(&Snapshot)?)
}

/// As [`select`], for verbs after which an app is not to run: with `all`, that is so already where there is no
/// daemon, or no app; then none, and it has been said.
pub fn select_to_end(
    client: &Client,
    words: &[String],
    cx: &Context,
) -> Result<Option<Selection>, CliError> {
    let all = words.iter().all(|word| word == "all");
    let known = match client.try_ask(&Snapshot) {
        Ok(known) => known,
        Err(CallError::NoDaemon) if all => {
            nothing_runs(cx)?;
            return Ok(None);
        }
        Err(error) => return Err(client.explain(error)),
    };
    if all && known.is_empty() {
        note_no_apps(&known, cx);
        return Ok(None);
    }
    resolve(words, known).map(Some)
}

/// `all` of no apps is nothing to do, which is said.
pub fn note_no_apps(known: &[Known], cx: &Context) {
    if known.is_empty() {
        cx.out.note("there are no apps, so there is nothing to do");
    }
}

/// Says that no daemon runs, and that all is done therefore.
///
/// # Errors
/// If systemd was to run one, and cannot.
pub fn nothing_runs(cx: &Context) -> Result<(), CliError> {
    if let Some(problem) = systemctl::trouble(&cx.paths()?) {
        return Err(problem);
    }
    cx.out.note("no daemon runs, so there is nothing to do");
    Ok(())
}

/// As [`select`], among the given apps.
pub fn resolve(words: &[String], known: Vec<Known>) -> Result<Selection, CliError> {
    let (mut targets, mut named) = (Vec::new(), Vec::new());
    for word in words {
        if is_file(word) {
            let of_file: Vec<_> = known
                .iter()
                .map(|known| &known.spec)
                .filter(|spec| {
                    spec.source
                        .as_deref()
                        .is_some_and(|source| same_file(source, word.as_ref()))
                })
                .collect();
            if of_file.is_empty() {
                return Err(CliError::failed(
                    "unknown_app",
                    format!("no app of {word} has been started"),
                )
                .hint(format!("rsup start {word}")));
            }
            targets.extend(
                of_file
                    .into_iter()
                    .map(|spec| Target::App(spec.name.clone())),
            );
            continue;
        }
        let target: Target = word.parse().map_err(|error| {
            CliError::usage(format!("`{word}` is not the name of an app\n{error}"))
        })?;
        if let Target::App(app) | Target::Worker(app, _) = &target
            && !known.iter().any(|known| known.spec.name == *app)
        {
            return Err(unknown(app.as_str(), &known));
        }
        if let Target::App(app) = &target {
            named.push(app.clone());
        }
        targets.push(target);
    }
    if targets.contains(&Target::All) {
        targets = vec![Target::All];
    }
    let whole: Vec<AppName> = targets
        .iter()
        .filter_map(|target| {
            if let Target::App(app) = target {
                Some(app.clone())
            } else {
                None
            }
        })
        .collect();
    let mut kept = Vec::new();
    for target in targets {
        let within_app = matches!(&target, Target::Worker(app, _) if whole.contains(app));
        if !within_app && !kept.contains(&target) {
            kept.push(target);
        }
    }
    Ok(Selection {
        targets: kept,
        known,
        named,
    })
}

/// The error for an app that the daemon does not know, with the name that may have been meant.
fn unknown(name: &str, known: &[Known]) -> CliError {
    let problem = CliError::failed("unknown_app", format!("no app is called `{name}`"));
    let distance = |known: &&str| strsim::damerau_levenshtein(known, name);
    let known = known.iter().map(|known| known.spec.name.as_str());
    let similar = known
        .clone()
        .filter(|known| distance(known) <= 1 + name.len() / 4);
    match similar.min_by_key(distance) {
        Some(similar) => problem.hint(format!("did you mean `{similar}`?")),
        None if known.len() == 0 => problem.hint("there are no apps; `rsup start` starts some"),
        None => problem.hint(format!(
            "there are: {}",
            known.collect::<Vec<_>>().join(", ")
        )),
    }
}

/// Names with commas between them.
pub fn names(specs: &[AppSpec]) -> String {
    specs
        .iter()
        .map(|spec| spec.name.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether a word is a configuration file rather than a name.
pub fn is_file(word: &str) -> bool {
    word.contains('/')
        || Path::new(word)
            .extension()
            .is_some_and(|extension| extension == "toml")
}

/// Whether both paths lead to the same file.
pub fn same_file(source: &Path, given: &Path) -> bool {
    let plain = |path: &Path| {
        path.canonicalize()
            .or_else(|_| crate::cwd::absolute(path))
            .unwrap_or_else(|_| path.to_owned())
    };
    source == given || plain(source) == plain(given)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{app, spec};
    use super::*;
    use crate::core::AppPhase;

    fn known(spec: AppSpec) -> Known {
        let view = app(spec.name.as_str(), AppPhase::Ready, vec![]);
        Known { spec, view }
    }

    fn targets(words: &[&str]) -> Result<Vec<String>, CliError> {
        let mut web = spec("web");
        web.source = Some("/srv/web/supervisor.toml".into());
        let mut job = spec("job");
        job.source = web.source.clone();
        let words: Vec<_> = words.iter().map(|word| word.to_string()).collect();
        let selection = resolve(&words, [spec("api"), web, job].map(known).into())?;
        Ok(selection.targets.iter().map(Target::to_string).collect())
    }

    #[test]
    fn each_target_is_there_once() {
        assert_eq!(
            targets(&["api:1", "web", "web:0", "web", "api:1"]).unwrap(),
            ["api:1", "web"]
        );
        assert_eq!(targets(&["api", "all", "web"]).unwrap(), ["all"]);
        assert_eq!(
            targets(&["/srv/web/supervisor.toml", "web"]).unwrap(),
            ["web", "job"]
        );
    }

    #[test]
    fn what_means_nothing_is_told_with_what_may_have_been_meant() {
        let hint = |word: &str| match targets(&[word]).unwrap_err() {
            CliError::Report { exit, report } => {
                (exit, report.code, report.hint.unwrap_or_default())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(
            hint("apo"),
            (1, "unknown_app".into(), "did you mean `api`?".into())
        );
        assert_eq!(
            hint("frontend"),
            (1, "unknown_app".into(), "there are: api, web, job".into())
        );
        assert_eq!(
            hint("other.toml"),
            (1, "unknown_app".into(), "rsup start other.toml".into())
        );
        assert_eq!(hint("api:x").0, 2);
    }
}
