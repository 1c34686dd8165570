//! rsup: a process supervisor that deploys new versions of web apps without a failed request.
//!
//! Data flows one way: [`cli`] → [`control`] → [`core`] (pure) → effects → [`daemon`] → [`sys`].

// The absences of ARCHITECTURE.md that a lint can see; tests/architecture.rs has the others.
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods, // clippy.toml says why of each
        clippy::exit,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unreachable,
        clippy::unwrap_used,
    )
)]

pub mod cli;
pub mod config;
pub mod control;
pub mod core;
mod cwd;
pub mod daemon;
pub mod exit;
pub mod human;
pub mod keeper;
pub mod load;
mod lock;
pub mod logs;
pub mod model;
pub mod paths;

pub mod sys;
