//! What the command line needs of the configuration.
//!
//! Stands in for the functions of the same names in [`crate::config`]; once those are there, this
//! file is `pub use crate::config::{ConfigErrors, Loaded, Script, from_script, load, resolve_cwd, sample};`.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{AppSpec, Config};

#[derive(Debug)]
pub struct ConfigErrors(String);

impl ConfigErrors {
    pub fn render(&self, _color: bool) -> String {
        format!("error: {}\n", self.0)
    }
}

#[derive(Debug)]
pub struct Problem(String);

impl Problem {
    pub fn render(&self, _color: bool) -> String {
        format!("warning: {}\n", self.0)
    }
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Problem>,
}

/// Options of `rsup start` without a file, as they were typed.
#[derive(Clone, Debug, Default)]
#[allow(dead_code)]
pub struct Script {
    pub name: Option<String>,
    pub command: Vec<String>,
    pub instances: Option<String>,
    pub listen: Vec<String>,
    pub env: Vec<String>,
    pub env_file: Vec<String>,
    pub cwd: PathBuf,
    pub readiness: Option<String>,
    pub liveness: Option<String>,
    pub max_memory: Option<String>,
    pub balance: Option<String>,
    pub listen_timeout: Option<String>,
    pub drain_timeout: Option<String>,
    pub kill_timeout: Option<String>,
    pub stop_signal: Option<String>,
}

pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    Err(ConfigErrors(format!("{}: configuration files are not built in yet", path.display())))
}

pub fn from_script(_script: &Script) -> Result<AppSpec, ConfigErrors> {
    Err(ConfigErrors("starting a script is not built in yet".into()))
}

pub fn resolve_cwd(spec: &mut AppSpec) -> io::Result<()> {
    spec.cwd_resolved = spec.cwd.canonicalize()?;
    Ok(())
}

pub fn sample(_dir: &Path) -> String {
    "# supervisor.toml\n".into()
}
