//! The control socket: requests and replies as typed, versioned frames.
//!
//! One request per connection: the client sends a [`Call`], the daemon any number of
//! [`Answer::Notes`] and [`Answer::Progress`] and then exactly one [`Answer::Done`] or
//! [`Answer::Failed`].

// A new state has to be thought of everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod action;
mod answer;
mod call;
mod frame;
mod query;
mod target;

pub use action::*;
pub use answer::*;
pub use call::*;
pub use frame::*;
pub use query::*;
pub use target::*;

pub use crate::core::FailureCode;
