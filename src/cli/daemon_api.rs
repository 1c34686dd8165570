//! What the command line needs of the daemon.

pub use crate::daemon::{Options as DaemonOptions, StartRequest, run};
