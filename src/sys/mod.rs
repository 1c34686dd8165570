//! The operating system, as rsup needs it: Linux system calls that no well-kept crate wraps, and
//! the few rules of the kernel that go with them.
//!
//! This is the only folder with `unsafe` in it. It decides no policy and writes no log: functions
//! do one thing and return the result.
//!
//! | file | what |
//! |---|---|
//! | [`listen`] | listening sockets: groups of one TCP address, unix sockets |
//! | [`steer`] | the program that says which socket of a group gets a connection; probe addresses |
//! | [`takeover`] | answering `bind(2)` of a worker with a socket of rsup |
//! | [`spawn`] | fork and exec with exact file descriptors |
//! | [`process`] | signals, exits, limits, clock, credentials |
//! | [`procfs`] | memory, processor time and descendants of a process |
//! | [`rescue`] | what a living worker still holds of rsup's descriptors |
//! | `owner` | inspecting processes of another user without `CAP_SYS_PTRACE` |
//! | [`inherit`] | descriptors that pass through exec |
//! | [`detach`] | dropping what a long-lived process inherited from its first command |
//! | [`fdpass`] | descriptors over unix sockets |
//! | [`sockdiag`] | the kernel's list of TCP sockets |
//! | [`readiness`] | descriptors that the event loop waits for |
//! | [`service`] | what a service manager passed to this process |
//! | [`holder`] | which process listens on a port or path |
//! | [`capability`] | the capabilities of a process |
//! | [`cgroup`] | limits for the tree of a worker, and the end of it |
//! | [`needs`] | system calls that rsup cannot do without, tried at its start |
//! | [`limits`] | limits of processes and memory around this process, and where they are set |
//! | [`durable`] | memory that outlives the process, filled from pipes |

#![allow(unsafe_code, reason = "system calls that no crate has")]

pub mod capability;
pub mod cgroup;
pub mod detach;
pub mod durable;
pub mod fdpass;
pub mod holder;
pub mod inherit;
pub mod interrupt;
pub mod limits;
pub mod listen;
pub mod needs;
mod owner;
pub mod process;
pub mod procfs;
mod raw;
pub mod readiness;
pub mod rescue;
pub mod service;
pub mod sockdiag;
pub mod spawn;
pub mod steer;
pub mod takeover;

#[cfg(test)]
mod tests;
