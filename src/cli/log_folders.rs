//! Notes on folders of logs that belong to other users.

use std::collections::BTreeSet;

use super::Context;
use crate::config::AppSpec;
use crate::human::one_line;
use crate::logs::foreign_folders;

/// Says which folders of the apps' logs belong to another user than root and the app's own: that user can
/// rename and remove what root's rsup writes there.
pub fn notes(apps: &[AppSpec], cx: &Context) {
    if nix::unistd::geteuid().is_root() {
        for note in of(apps) {
            cx.out.note(&note);
        }
    }
}

fn of(apps: &[AppSpec]) -> BTreeSet<String> {
    let mut notes = BTreeSet::new();
    for spec in apps {
        let user = spec.run_as.as_ref().map(|run_as| run_as.uid);
        for path in [&spec.log.out, &spec.log.err].into_iter().flatten() {
            for (folder, owner) in foreign_folders(path, user) {
                let folder = folder.display().to_string();
                notes.insert(format!(
                    "{}: {} belongs to user {owner}, who can rename and remove the logs in it, and have rsup write to other files of its own; a folder of root, or of the app's user, is safer",
                    spec.name,
                    one_line(&folder),
                ));
            }
        }
    }
    notes
}
