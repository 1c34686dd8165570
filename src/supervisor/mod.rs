//! The pure supervisor: Inputs in, Effects out, time as an argument.

mod view;

pub use view::*;
