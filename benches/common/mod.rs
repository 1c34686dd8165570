//! What the benches share: options, tables, the contestants and how to measure processes.

#![allow(dead_code, unused_imports, reason = "each bench uses a part")]

pub mod peers;
pub mod process;
pub mod rsup;
pub mod table;
pub mod web;

pub use peers::Peers;
pub use rsup::Rsup;
pub use table::{Bar, Table};

use std::time::{Duration, Instant};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The command line of every bench.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Fewer and shorter rounds: to see that it works, not for figures.
    pub quick: bool,
}

impl Options {
    /// Also says what machine this is, since figures mean nothing without it.
    pub fn parse(what: &str) -> Self {
        let quick = std::env::args().any(|argument| argument == "--quick");
        println!("# {what}{}", if quick { " (quick)" } else { "" });
        println!("{}", process::machine());
        Self { quick }
    }

    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Asks until it is so.
pub fn until(what: &str, limit: Duration, mut so: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !so() {
        if begin.elapsed() > limit {
            return Err(format!("{what}: not within {limit:?}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
