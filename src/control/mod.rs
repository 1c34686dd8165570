//! The control socket: requests and replies as typed, versioned frames.

mod frame;
mod protocol;

pub use frame::*;
pub use protocol::*;
