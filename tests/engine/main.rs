//! rsup in containers of a real engine: a dockerd of the tests' own, and the image that the Dockerfile in
//! `examples/docker` describes, built by it.

#[path = "../common/mod.rs"]
mod common;

mod container;
mod engine;
mod image;
mod life;
mod profile;

mod example;
mod limits;
mod privileges;
mod profiles;
mod stops;
// The last by name, and so the last that begins.
mod teardown;
