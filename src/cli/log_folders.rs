//! Notes on folders of logs that belong to other users.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Context;
use crate::config::AppSpec;
use crate::human::one_line;
use crate::logs::foreign_folders;

/// A disk that does not answer holds up no start: the note is left out.
const PATIENCE: Duration = Duration::from_millis(500);

/// A log of an app, and the app's user.
type OfApp = (String, PathBuf, Option<u32>);

/// Says which folders of the apps' logs belong to another user than root and the app's own: that user can
/// rename and remove what root's rsup writes there.
pub fn notes(apps: &[AppSpec], cx: &Context) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let logs = apps.iter().flat_map(|spec| {
        let user = spec.run_as.as_ref().map(|run_as| run_as.uid);
        let paths = [&spec.log.out, &spec.log.err].into_iter().flatten();
        paths.map(move |path| (spec.name.to_string(), path.clone(), user))
    });
    let logs: Vec<OfApp> = logs.collect();
    if logs.is_empty() {
        return;
    }
    let (found, notes) = mpsc::channel();
    let look = move || drop(found.send(of(&logs)));
    if thread::Builder::new().spawn(look).is_ok() {
        for note in notes.recv_timeout(PATIENCE).unwrap_or_default() {
            cx.out.note(&note);
        }
    }
}

fn of(logs: &[OfApp]) -> BTreeSet<String> {
    let mut notes = BTreeSet::new();
    for (app, path, user) in logs {
        for (folder, owner) in foreign_folders(path, *user) {
            let folder = folder.display().to_string();
            notes.insert(format!(
                "{app}: {} belongs to user {owner}, who can rename and remove the logs in it, and have rsup write to other files of its own; a folder of root, or of the app's user, is safer",
                one_line(&folder),
            ));
        }
    }
    notes
}
