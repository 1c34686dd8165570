//! Whatever happens to rsup or to one of its apps: every other app is untouched, and it is said what
//! happened. Each test has a bystander, an app under light load that must not notice anything.

#[path = "../common/mod.rs"]
mod common;
#[path = "../lifecycle/support.rs"]
mod support;

mod attackers;
mod bystander;
mod control;
mod crashes;
mod descriptors;
mod disk;
mod forks;
mod logs;
mod memory;
mod modes;
mod stillness;
mod workers;
