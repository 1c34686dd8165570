//! Apps as their files describe them now.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::config_api::{self, Loaded};
use super::problem::{Problem, Report, USAGE};
use super::render::Output;
use crate::config::AppSpec;

/// Reads each file once and picks the apps; an app without a file keeps its settings, but its
/// folder is looked up again. Any error ends it before anything is changed.
pub fn reread(running: &[&AppSpec], out: &Output) -> Result<Vec<AppSpec>, Problem> {
    let mut files: BTreeMap<&PathBuf, Loaded> = BTreeMap::new();
    let mut broken = Vec::new();
    for source in running.iter().filter_map(|spec| spec.source.as_ref()) {
        if files.contains_key(source) || broken.iter().any(|(path, _)| *path == source) {
            continue;
        }
        match config_api::load(source) {
            Ok(loaded) => drop(files.insert(source, loaded)),
            Err(errors) => broken.push((source, errors)),
        }
    }
    if !broken.is_empty() {
        return Err(Problem::Config(broken.into_iter().map(|(_, errors)| errors).collect()));
    }
    for warning in files.values().flat_map(|loaded| &loaded.warnings) {
        out.warning(&warning.render(out.error_look.color));
    }
    running.iter().map(|old| fresh(old, &files, out)).collect()
}

fn fresh(old: &AppSpec, files: &BTreeMap<&PathBuf, Loaded>, out: &Output) -> Result<AppSpec, Problem> {
    let Some(loaded) = old.source.as_ref().and_then(|source| files.get(source)) else {
        let mut spec = old.clone();
        config_api::resolve_cwd(&mut spec).map_err(|error| {
            Problem::failed("bad_request", format!("{} cannot run in {}\n{error}", old.name, old.cwd.display()))
        })?;
        return Ok(spec);
    };
    match loaded.config.apps.iter().find(|spec| spec.name == old.name) {
        Some(spec) => {
            if spec.instances != old.instances {
                out.note(&format!("{} goes from {} to {} workers, as its file says", old.name, old.instances, spec.instances));
            }
            Ok(spec.clone())
        }
        None => {
            let file = old.source.as_deref().unwrap_or_else(|| "its file".as_ref()).display();
            let report = Report::new("gone", format!("{} is no longer in {file}\nnothing was changed", old.name));
            Err(Problem::Report { exit: USAGE, report: report.hint(format!("rsup delete {}", old.name)) })
        }
    }
}
