//! PM2 and Express, from npm, in a folder below `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{Result, process, until};

/// Node's side of the benches.
pub struct Peers {
    folder: PathBuf,
    pub node: String,
}

fn installed() -> Result<Peers> {
    let version = |command: &mut Command| -> Result<String> {
        let output = command.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let node =
        version(Command::new("node").arg("--version")).map_err(|why| format!("no node: {why}"))?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("peers");
    fs::create_dir_all(&folder)?;
    if !folder.join("node_modules/pm2").exists() || !folder.join("node_modules/express").exists() {
        println!("installing pm2@7 and express@4 into {}", folder.display());
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
            "pm2@7",
            "express@4",
        ])
        .arg("--prefix")
        .arg(&folder);
        version(npm.current_dir(&folder)).map_err(|why| format!("npm install: {why}"))?;
    }
    let app = folder.join("express-api");
    fs::create_dir_all(&app)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/apps/express-api");
    for file in ["server.js", "package.json"] {
        fs::copy(source.join(file), app.join(file))?;
    }
    Ok(Peers { folder, node })
}

impl Peers {
    /// `None`, with the reason on stdout, where there is no node or no way to install.
    pub fn get() -> Option<Self> {
        match installed() {
            Ok(peers) => {
                let package =
                    fs::read_to_string(peers.folder.join("node_modules/pm2/package.json"))
                        .unwrap_or_default();
                let package: serde_json::Value = serde_json::from_str(&package).unwrap_or_default();
                println!(
                    "node {}, pm2 {}",
                    peers.node,
                    package["version"].as_str().unwrap_or("?")
                );
                Some(peers)
            }
            Err(why) => {
                println!(
                    "SKIPPED: everything that needs node and PM2 ({})",
                    why.to_string().trim()
                );
                None
            }
        }
    }

    /// The folder of the Express app.
    pub fn app(&self) -> PathBuf {
        self.folder.join("express-api")
    }

    pub fn pm2(&self) -> Result<Pm2> {
        let home = tempfile::Builder::new()
            .prefix("rsup-bench-pm2-")
            .tempdir_in("/tmp")?;
        Ok(Pm2 {
            home,
            program: self.folder.join("node_modules/.bin/pm2"),
        })
    }
}

/// A PM2 of its own; dropping it ends its daemon and all it has started.
pub struct Pm2 {
    home: TempDir,
    program: PathBuf,
}

impl Pm2 {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("PM2_HOME", self.home.path())
            .env("PM2_DISABLE_VERSION_CHECK", "true")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!(
                "pm2 {}: {}\n{text}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
            .into());
        }
        Ok(text)
    }

    /// Starts the apps of an ecosystem file.
    pub fn start(&self, apps: &serde_json::Value) -> Result<()> {
        let file = self.home.path().join("ecosystem.config.json");
        fs::write(&file, serde_json::json!({ "apps": apps }).to_string())?;
        self.run(&["start", &file.display().to_string()]).map(drop)
    }

    pub fn daemon(&self) -> Result<u32> {
        Ok(fs::read_to_string(self.home.path().join("pm2.pid"))?
            .trim()
            .parse()?)
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        let daemon = self.daemon();
        let _ = self
            .command(&["kill"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if let Ok(pid) = daemon
            && until("the end of PM2's daemon", Duration::from_secs(5), || {
                !process::lives(pid)
            })
            .is_err()
        {
            process::kill(pid);
        }
    }
}
