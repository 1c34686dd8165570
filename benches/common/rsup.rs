//! rsup as its users run it: the program, with folders of its own.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::Result;

/// The program under test: `RSUP_BIN`, or the one that cargo has built for the bench.
pub fn program() -> PathBuf {
    std::env::var_os("RSUP_BIN").map_or_else(|| env!("CARGO_BIN_EXE_rsup").into(), PathBuf::from)
}

/// A daemon and its folders; dropping it stops both.
pub struct Rsup {
    pub home: TempDir,
}

impl Rsup {
    pub fn new() -> Result<Self> {
        Ok(Self {
            home: tempfile::Builder::new()
                .prefix("rsup-bench-")
                .tempdir_in("/tmp")?,
        })
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("RSUP_HOME", self.home.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("rsup {}: {}\n{said}", arguments.join(" "), output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts what the configuration says, and waits until it is ready.
    pub fn start(&self, toml: &str) -> Result<()> {
        let file = self.home.path().join("supervisor.toml");
        std::fs::write(&file, toml)?;
        self.run(&["start", &file.display().to_string()])?;
        Ok(())
    }

    pub fn daemon(&self) -> Result<u32> {
        let pong: Value = serde_json::from_str(&self.run(&["ping", "--json"])?)?;
        Ok(pong["pid"].as_u64().ok_or("no pid in the answer of ping")? as u32)
    }

    pub fn stop(&self) -> Result<()> {
        self.run(&["kill"]).map(drop)
    }
}

impl Drop for Rsup {
    fn drop(&mut self) {
        // Fails where it was stopped already.
        let _ = self
            .command(&["kill"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
