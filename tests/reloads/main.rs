//! Reloads of real apps: what clients notice of them, which is to be nothing.

#[path = "../common/mod.rs"]
mod common;

mod broken;
mod current;
mod queue;
mod reread;
mod restart;
mod up;
mod zero_loss;
