//! `supervisor.toml`: a raw mirror with spans → checked configuration, with all errors at once.

mod types;

pub use types::*;
