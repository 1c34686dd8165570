//! Nothing that happens to rsup itself reaches the users of its apps.

#[path = "../common/mod.rs"]
mod common;
#[path = "../lifecycle/support.rs"]
mod support;

mod acceptance;
mod binds;
mod both;
mod cut_short;
mod daemon;
mod first_command;
mod former;
mod identity;
mod keeper;
mod reboot;
mod supervisors;
mod upgrade;
