//! The life of processes, with the real program: each test has a daemon of its own.

#[path = "../common/mod.rs"]
mod common;
mod support;

mod beside;
mod cli;
mod events;
mod foreground;
mod hints;
mod idle;
mod limits;
mod liveness;
mod logs;
mod memory;
mod readiness;
mod restart;
mod stop;
