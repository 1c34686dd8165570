//! rsup: a process supervisor that deploys new versions of web apps without a failed request.
//!
//! Data flows one way: [`cli`] → [`control`] → [`core`] (pure) → effects → [`daemon`] → [`sys`].

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
