//! What all layers say to each other about apps and workers: plain data, without a decision and without a clock.
//! [`words`] alone puts it into English.

// A new state has to be thought of everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

pub mod error;
pub mod event;
pub mod foreground;
pub mod reason;
pub mod types;
pub mod view;
pub mod words;

pub use error::ActionError;
pub use event::{Cause, Event, What, WorkerName};
pub use reason::{Because, Doubt, Loss, Retire};
