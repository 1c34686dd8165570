//! The load that `rsup demo`, `rsup verify` and the zero-loss tests put on an app, its statistics,
//! its report, and the small web app for where there is no other.
//!
//! * [`client`]: [`Plan`] → [`start`] → [`Handle`] → [`Report`]. Every request that was begun is
//!   counted: as answered, or as a [`Failure`] of one kind. Nothing is retried.
//! * [`stats`]: what is counted, by phase and over time; the fields of the JSON report. `recorder`
//!   does the counting.
//! * `connect` and `http`: one connection, one exchange.
//! * [`report`] and `chart`: the same for a terminal.
//! * [`sample`]: the built-in web app.

mod chart;
pub mod client;
mod connect;
mod http;
mod recorder;
pub mod report;
pub mod sample;
#[cfg(test)]
mod sample_tests;
pub mod stats;
#[cfg(test)]
mod tests;

pub use client::{Handle, Plan, start};
pub use connect::Target;
pub use report::render;
pub use stats::{Failure, FailureKind, Marker, Phase, Report, Snapshot};
