//! What the command line needs of the configuration.

pub use crate::config::{ConfigErrors, Loaded, Script, from_script, load, resolve_cwd, sample};
