//! Life under a service manager: the protocol alone, played by the test, and a real systemd that is
//! booted in a container of its own.

#[path = "../common/mod.rs"]
mod common;

mod deploy;
mod machine;
mod protocol;
mod scenario;
mod store;
