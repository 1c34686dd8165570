//! Whatever happens to rsup or to one of its apps: every other app is untouched, and it is said what
//! happened. Each test has a bystander, an app under light load that must not notice anything.

#[path = "../common/mod.rs"]
mod common;
#[path = "../lifecycle/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the life of processes")]
mod support;

mod bystander;
mod control;
mod crashes;
mod descriptors;
mod disk;
mod forks;
mod stillness;
mod workers;
