//! Apps as their files describe them now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::error::{CliError, Report, USAGE};
use super::render::{self, Output};
use super::settings;
use super::targets;
use crate::config::AppSpec;
use crate::config::{self, Loaded};

/// Reads each file once and picks the apps; an app without a file keeps its settings, but its
/// folder is looked up again. Any error ends it before anything is changed.
pub fn reread(
    running: &[&AppSpec],
    client: &Client,
    out: &Output,
) -> Result<Vec<AppSpec>, CliError> {
    let mut files: BTreeMap<&PathBuf, Loaded> = BTreeMap::new();
    let mut broken = Vec::new();
    for source in running.iter().filter_map(|spec| spec.source.as_ref()) {
        if files.contains_key(source) || broken.iter().any(|(path, _)| *path == source) {
            continue;
        }
        if source.parent().is_some_and(|folder| !folder.exists()) {
            return Err(folder_gone(source, running));
        }
        match config::load(source) {
            Ok(loaded) => drop(files.insert(source, loaded)),
            Err(errors) => broken.push((source, errors)),
        }
    }
    if !broken.is_empty() {
        return Err(CliError::Config(
            broken.into_iter().map(|(_, errors)| errors).collect(),
        ));
    }
    for warning in files.values().flat_map(|loaded| &loaded.warnings) {
        out.warning(&warning.render(out.error_look.color));
    }
    let fresh: Vec<_> = running
        .iter()
        .map(|old| fresh(old, &files))
        .collect::<Result<_, _>>()?;
    note_scaling(&fresh, client, out)?;
    for (source, loaded) in &files {
        settings::tell(client, settings::of(source, loaded), out)?;
    }
    Ok(fresh)
}

/// The folder of a file that is to be read again is not there, nor are its apps' settings.
fn folder_gone(source: &Path, running: &[&AppSpec]) -> CliError {
    let apps: Vec<_> = running
        .iter()
        .filter(|spec| spec.source.as_deref() == Some(source))
        .map(|spec| spec.name.as_str())
        .collect();
    let folder = source.parent().unwrap_or(source).display();
    let report = Report::new(
        "gone",
        format!(
            "the folder {folder} does not exist any more\nnothing was changed; {} cannot be read again from {}",
            apps.join(", "),
            source.display()
        ),
    );
    CliError::Report {
        exit: USAGE,
        report: report.hint(anew(&apps)),
    }
}

/// How apps leave a folder that is no more.
fn anew(apps: &[&str]) -> String {
    format!(
        "put the folder back, or `rsup delete {}` and start it by a path that stays, such as a link to the newest release",
        apps.join(" ")
    )
}

fn fresh(old: &AppSpec, files: &BTreeMap<&PathBuf, Loaded>) -> Result<AppSpec, CliError> {
    let Some(loaded) = old.source.as_ref().and_then(|source| files.get(source)) else {
        let mut spec = old.clone();
        config::resolve_cwd(&mut spec).map_err(|error| {
            let problem = CliError::failed(
                "bad_request",
                format!("{} cannot run in {}\n{error}", old.name, old.cwd.display()),
            );
            if error.kind() == std::io::ErrorKind::NotFound {
                problem.hint(anew(&[old.name.as_str()]))
            } else {
                problem
            }
        })?;
        config::resolve_user(&mut spec).map_err(|why| {
            CliError::failed(
                "bad_request",
                format!("{} has lost its user\n{why}", old.name),
            )
        })?;
        return Ok(spec);
    };
    match loaded.config.apps.iter().find(|spec| spec.name == old.name) {
        Some(spec) => Ok(spec.clone()),
        None => {
            let file = old
                .source
                .as_deref()
                .unwrap_or_else(|| "its file".as_ref())
                .display();
            let report = Report::new(
                "gone",
                format!("{} is no longer in {file}\nnothing was changed", old.name),
            );
            Err(CliError::Report {
                exit: USAGE,
                report: report.hint(format!("rsup delete {}", old.name)),
            })
        }
    }
}

/// `rsup scale` does not outlive this: better told now than found out under load.
fn note_scaling(fresh: &[AppSpec], client: &Client, out: &Output) -> Result<(), CliError> {
    for view in targets::views(client)? {
        if let Some(spec) = fresh
            .iter()
            .find(|spec| spec.name == view.name && spec.instances != view.instances)
        {
            out.note(&format!(
                "{} goes from {} to {}",
                view.name,
                workers(view.instances),
                workers(spec.instances)
            ));
        }
    }
    Ok(())
}

fn workers(number: u16) -> String {
    render::count(number.into(), "worker")
}
