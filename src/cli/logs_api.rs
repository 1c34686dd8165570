//! What the command line needs of the log files.

pub use crate::logs::{Follower, Stream, last_lines};
