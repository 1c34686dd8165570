//! The apps, or the worker, that a request is about.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::AppName;

/// `all`, `app` or `app:instance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    All,
    App(AppName),
    Worker(AppName, u16),
}

impl Target {
    /// The instance of a single worker; `None` for whole apps.
    pub fn instance(&self) -> Option<u16> {
        match self {
            Self::Worker(_, instance) => Some(*instance),
            Self::All | Self::App(_) => None,
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        match text.split_once(':') {
            None => AppName::parse(text).map(Self::App),
            Some((app, instance)) => {
                let number = instance
                    .parse()
                    .map_err(|_| format!("`{instance}` is not a worker's number; try `{app}:0`"))?;
                Ok(Self::Worker(AppName::parse(app)?, number))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::App(app) => app.fmt(f),
            Self::Worker(app, instance) => write!(f, "{app}:{instance}"),
        }
    }
}
