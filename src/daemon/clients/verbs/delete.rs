//! `rsup delete`.

use super::Task;
use crate::control::{Failure, Target};
use crate::core::Request;
use crate::daemon::Daemon;

impl Daemon {
    pub(super) fn delete(&self, targets: &[Target]) -> Result<Vec<Task>, Failure> {
        self.each(targets, "delete", || Request::Delete)
    }
}
