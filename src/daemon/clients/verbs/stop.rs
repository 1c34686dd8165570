//! `rsup stop`.

use super::Task;
use crate::control::{Failure, Target};
use crate::core::Request;
use crate::daemon::Daemon;

impl Daemon {
    pub(super) fn stop(&self, targets: &[Target]) -> Result<Vec<Task>, Failure> {
        self.each(targets, "stop", || Request::Stop)
    }
}
