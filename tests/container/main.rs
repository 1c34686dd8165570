//! rsup as the first process of a pid namespace, as in a container; and what an orchestrator sees of it.

#[path = "../common/mod.rs"]
mod common;
mod support;

mod admin;
mod codes;
mod exposition;
mod hostile;
mod image;
mod metrics;
mod orphans;
mod output;
mod signals;
