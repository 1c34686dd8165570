//! Apps as their files describe them now: the only place where a configuration is read again, for
//! commands and for the daemon's own triggers ([`super::commands::reread`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{CliError, Report, USAGE};
use super::render::{self, Output};
use super::settings;
use crate::config::{self, AppName, AppSpec, Loaded};
use crate::control::Known;
use crate::core::Settings;

/// What the files say now.
#[derive(Debug)]
pub struct Reread {
    /// Apps to reload or restart.
    pub apps: Vec<AppSpec>,
    /// `[supervisor]` of the files.
    pub settings: Vec<Settings>,
    /// Apps that must stay as they are, and why.
    pub stay: Vec<(AppName, CliError)>,
    /// Apps of the files that the daemon does not know.
    pub added: Vec<(AppName, PathBuf)>,
    files: BTreeMap<PathBuf, Loaded>,
}

/// Reads each file once and picks the apps; an app without a file keeps its settings, but its
/// folder and user are looked up again. `also`: a file to read though none of its apps is meant.
///
/// # Errors
/// If a file has errors, with those of all files.
pub fn read(meant: &[&Known], known: &[Known], also: Option<PathBuf>) -> Result<Reread, CliError> {
    let mut files: BTreeMap<PathBuf, Loaded> = BTreeMap::new();
    let mut broken = BTreeMap::new();
    let sources = meant.iter().filter_map(|known| known.spec.source.clone());
    for source in sources.chain(also) {
        if files.contains_key(&source) || broken.contains_key(&source) {
            continue;
        }
        if source.parent().is_some_and(|folder| !folder.exists()) {
            return Err(folder_gone(&source, meant));
        }
        match config::load(&source) {
            Ok(loaded) => drop(files.insert(source, loaded)),
            Err(errors) => drop(broken.insert(source, errors)),
        }
    }
    if !broken.is_empty() {
        return Err(CliError::Config(broken.into_values().collect()));
    }
    let (mut apps, mut stay) = (Vec::new(), Vec::new());
    for Known { spec, .. } in meant {
        match fresh(spec, &files) {
            Ok(new) => apps.push(new),
            Err(why) => stay.push((spec.name.clone(), why)),
        }
    }
    let mut added = Vec::new();
    for (source, loaded) in &files {
        let of_file = loaded.config.apps.iter().map(|app| &app.name);
        let new = of_file.filter(|name| !known.iter().any(|known| known.spec.name == **name));
        added.extend(new.map(|name| (name.clone(), source.clone())));
    }
    let settings = files.iter();
    let settings = settings.map(|(source, loaded)| settings::of(source, loaded));
    Ok(Reread {
        apps,
        settings: settings.collect(),
        stay,
        added,
        files,
    })
}

/// For a command: an app whose file is wrong ends the command before anything is changed.
pub fn for_command(
    meant: &[&Known],
    known: &[Known],
    out: &Output,
) -> Result<(Vec<AppSpec>, Vec<Settings>), CliError> {
    let Reread {
        apps,
        settings,
        stay,
        added,
        files,
    } = read(meant, known, None)?;
    for warning in files.values().flat_map(|loaded| &loaded.warnings) {
        out.warning(&warning.render(out.error_look.color));
    }
    if let Some((_, why)) = stay.into_iter().next() {
        return Err(why);
    }
    for (app, file) in added {
        out.note(&new_in_file(&app, &file));
    }
    note_scaling(&apps, meant, out);
    Ok((apps, settings))
}

/// The note on an app that the file has beside those that were meant.
pub fn new_in_file(app: &AppName, file: &Path) -> String {
    let file = file.display();
    format!("{app} is new in its file and not started; `rsup start {file}` starts it")
}

/// The error where the folder of a file to read again is gone, and its apps' settings with it.
fn folder_gone(source: &Path, meant: &[&Known]) -> CliError {
    let apps: Vec<_> = meant
        .iter()
        .filter(|known| known.spec.source.as_deref() == Some(source))
        .map(|known| known.spec.name.as_str())
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

/// The commands that move apps out of a folder that is gone.
fn anew(apps: &[&str]) -> String {
    format!(
        "put the folder back, or move {} with `rsup up FILE` by a path that stays, such as a link to the newest release",
        apps.join(" ")
    )
}

fn fresh(old: &AppSpec, files: &BTreeMap<PathBuf, Loaded>) -> Result<AppSpec, CliError> {
    let Some((file, loaded)) = old
        .source
        .as_ref()
        .and_then(|source| Some((source, files.get(source)?)))
    else {
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
    let new = loaded.config.apps.iter().find(|spec| spec.name == old.name);
    new.cloned().ok_or_else(|| {
        let (app, file) = (&old.name, file.display());
        let report = Report::new(
            "gone",
            format!("{app} is no longer in {file}\nnothing was changed"),
        );
        CliError::Report {
            exit: USAGE,
            report: report.hint(format!("rsup delete {app}")),
        }
    })
}

/// A reload undoes `rsup scale`: says so now, before the app is under load.
fn note_scaling(fresh: &[AppSpec], meant: &[&Known], out: &Output) {
    for Known { view, .. } in meant {
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
}

fn workers(number: u16) -> String {
    render::count(number.into(), "worker")
}
