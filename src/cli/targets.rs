//! Which apps the words of a command line mean.

use std::path::Path;

use super::client::Client;
use super::error::CliError;
use crate::config::{AppName, AppSpec};
use crate::control::{Reply, Request, Target};
use crate::core::AppView;

/// What was asked for, and the apps that the daemon knows.
#[derive(Debug)]
pub struct Selection {
    /// Each once, in the order of the command line; only `All` if everything is meant.
    pub targets: Vec<Target>,
    /// All that the daemon knows.
    pub known: Vec<AppSpec>,
}

impl Selection {
    /// The apps that the targets belong to, each once.
    pub fn apps(&self) -> Vec<&AppSpec> {
        let meant = |spec: &&AppSpec| {
            self.targets.iter().any(|target| match target {
                Target::All => true,
                Target::App(app) | Target::Worker(app, _) => *app == spec.name,
            })
        };
        self.known.iter().filter(meant).collect()
    }

    /// For verbs that take whole apps only.
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

/// All that the daemon knows.
pub fn known(client: &Client) -> Result<Vec<AppSpec>, CliError> {
    match client.ask(Request::Specs {
        target: Target::All,
    })? {
        Reply::Specs(specs) => Ok(specs),
        _ => Err(unexpected()),
    }
}

/// How they all do.
pub fn views(client: &Client) -> Result<Vec<AppView>, CliError> {
    match client.ask(Request::List)? {
        Reply::List(views) => Ok(views),
        _ => Err(unexpected()),
    }
}

/// A reply that belongs to another request.
pub fn unexpected() -> CliError {
    CliError::failed(
        "broken",
        "the daemon answered something else than was asked",
    )
}

/// Looks up names, `name:worker`, `all` and files. Nothing is done if one of them means nothing.
pub fn select(client: &Client, words: &[String]) -> Result<Selection, CliError> {
    resolve(words, known(client)?)
}

fn resolve(words: &[String], known: Vec<AppSpec>) -> Result<Selection, CliError> {
    let mut targets = Vec::new();
    for word in words {
        if is_file(word) {
            let of_file: Vec<_> = known
                .iter()
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
            && !known.iter().any(|spec| spec.name == *app)
        {
            return Err(unknown(app.as_str(), &known));
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
    })
}

/// An app that the daemon does not know, and which one may have been meant.
pub fn unknown(name: &str, known: &[AppSpec]) -> CliError {
    let problem = CliError::failed("unknown_app", format!("no app is called `{name}`"));
    let similar = |spec: &&AppSpec| {
        strsim::damerau_levenshtein(spec.name.as_str(), name) <= 1 + name.len() / 4
    };
    match known
        .iter()
        .filter(similar)
        .min_by_key(|spec| strsim::damerau_levenshtein(spec.name.as_str(), name))
    {
        Some(spec) => problem.hint(format!("did you mean `{}`?", spec.name)),
        None if known.is_empty() => problem.hint("there are no apps; `rsup start` starts some"),
        None => problem.hint(format!("there are: {}", names(known))),
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

/// A configuration file rather than a name.
pub fn is_file(word: &str) -> bool {
    word.contains('/')
        || Path::new(word)
            .extension()
            .is_some_and(|extension| extension == "toml")
}

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
    use super::super::fixtures::spec;
    use super::*;

    fn targets(words: &[&str]) -> Result<Vec<String>, CliError> {
        let mut web = spec("web");
        web.source = Some("/srv/web/supervisor.toml".into());
        let mut job = spec("job");
        job.source = web.source.clone();
        let words: Vec<_> = words.iter().map(|word| word.to_string()).collect();
        let selection = resolve(&words, vec![spec("api"), web, job])?;
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
