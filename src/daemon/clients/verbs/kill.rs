//! `rsup kill`.

use super::{Caller, Step, Task};
use crate::config::AppName;
use crate::control::ActionId;
use crate::core::Request;
use crate::daemon::Daemon;
use crate::daemon::clients::remembered::{How, Part};
use crate::daemon::store::Ending;
use crate::model::Cause;

impl Daemon {
    /// Stops every app, and then ends. During a stop of everything it waits for that to end.
    pub(in crate::daemon::clients) fn kill(&mut self, id: ActionId, answer: Caller) {
        let tasks = if self.ending {
            let join = |Part { app, kind, how }| match how {
                How::Op(op) => Some(Task {
                    app,
                    kind,
                    step: Step::Join(op),
                }),
                How::Untouched(_) | How::Refused(_) => None,
            };
            self.under_way().into_iter().filter_map(join).collect()
        } else {
            let apps: Vec<AppName> = self.supervisor.names().cloned().collect();
            let halt = |app| Task::begin(app, Request::Halt);
            apps.into_iter().map(halt).collect()
        };
        self.note_end(Ending::Kill);
        self.begin(id, tasks, Cause::Shutdown, (true, true), answer);
    }
}
