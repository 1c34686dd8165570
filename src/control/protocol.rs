//! What the CLI and the daemon say to each other.
//!
//! One request per connection: the client sends a [`Call`], the daemon at most one [`Answer::Accepted`],
//! any number of [`Answer::Progress`] and then exactly one [`Answer::Done`] or [`Answer::Failed`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{AppName, AppSpec};
pub use crate::core::FailureCode;
use crate::core::{AppView, Description, OpId, OperationKind, Progress, Settings};

/// Raised when an older peer could misread a frame. A daemon refuses other versions in words.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub version: u32,
    pub request: Request,
    /// False: answer as soon as the action is accepted (`--no-wait`).
    pub wait: bool,
}

impl Call {
    /// What the body of a frame says, or why it is refused.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        // The version is looked at first: the rest may mean something else in another one.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let understood = |why: serde_json::Error| format!("the request is not understood: {why}");
        let Versioned { version } = serde_json::from_slice(body).map_err(understood)?;
        if version != VERSION {
            return Err(format!(
                "the daemon speaks version {VERSION} of the protocol, this client version {version}; `rsup kill` and start again with one of them"
            ));
        }
        serde_json::from_slice(body).map_err(understood)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Ping,
    /// `[supervisor]` of a file whose apps are about to be started or reloaded.
    Supervise {
        settings: Settings,
    },
    /// Start these apps; one that runs already is refused. `base_env` is the caller's environment.
    Start {
        apps: Vec<AppSpec>,
        base_env: BTreeMap<String, String>,
    },
    /// Start stopped apps (or errored workers) as they were last configured.
    StartStopped {
        target: Target,
    },
    Stop {
        target: Target,
    },
    /// All workers at once, with the listening sockets held open; `apps` re-read from their file.
    Restart {
        apps: Vec<AppSpec>,
        base_env: Option<BTreeMap<String, String>>,
    },
    /// Rolling replacement. `base_env` only with `--update-env`. `queue`: wait for one under way.
    Reload {
        apps: Vec<AppSpec>,
        base_env: Option<BTreeMap<String, String>>,
        queue: bool,
    },
    Delete {
        target: Target,
    },
    Scale {
        app: AppName,
        to: ScaleTo,
    },
    Signal {
        target: Target,
        signal: i32,
    },
    List,
    Describe {
        target: Target,
    },
    Env {
        target: Target,
    },
    /// The specs as they run now, so that the client can re-read their files.
    Specs {
        target: Target,
    },
    LogFiles {
        target: Target,
    },
    /// Stop every app gracefully and end the daemon.
    Kill,
    /// Become another program, with workers and sockets untouched. Answered by [`Reply::Upgrading`]
    /// once the program has shown that it can read the state; [`Request::HowUpgraded`] tells the rest.
    Upgrade {
        program: PathBuf,
        /// The client's name for it.
        token: u64,
        /// Do not wait for connections that the daemon itself passes on.
        force: bool,
    },
    HowUpgraded {
        token: u64,
    },
    /// Go on waiting for actions that a daemon which died since had [accepted](Answer::Accepted).
    Await {
        actions: Vec<Accepted>,
        /// They are those of a [`Request::Kill`].
        kill: bool,
    },
}

impl Request {
    /// It changes nothing, or nothing more if it comes again: whoever got no answer may ask again.
    pub fn only_asks(&self) -> bool {
        match self {
            Self::Ping
            | Self::Supervise { .. }
            | Self::List
            | Self::Describe { .. }
            | Self::Env { .. }
            | Self::Specs { .. }
            | Self::LogFiles { .. }
            | Self::HowUpgraded { .. }
            | Self::Await { .. } => true,
            Self::Start { .. }
            | Self::StartStopped { .. }
            | Self::Stop { .. }
            | Self::Restart { .. }
            | Self::Reload { .. }
            | Self::Delete { .. }
            | Self::Scale { .. }
            | Self::Signal { .. }
            | Self::Upgrade { .. }
            | Self::Kill => false,
        }
    }
}

/// A long action that has been accepted: its name outlives the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    pub op: OpId,
    pub app: AppName,
    pub kind: OperationKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleTo {
    Exactly(u16),
    By(i32),
}

/// `all`, `app` or `app:instance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    All,
    App(AppName),
    Worker(AppName, u16),
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The first answer to a long action that is waited for.
    Accepted(Vec<Accepted>),
    Progress(Progress),
    Done(Reply),
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Pong {
        pid: u32,
        version: String,
        protocol: u32,
        uptime_ms: u64,
        memory: Option<u64>,
        /// Where the admin listener is, if one is wanted.
        #[serde(default)]
        admin: Option<AdminView>,
        /// What is wrong with the daemon itself now, as opposed to an app.
        #[serde(default)]
        troubles: Vec<String>,
    },
    /// What the user should know of what has become of it.
    Supervised {
        notes: Vec<String>,
    },
    /// A long action is over (or was accepted, with `wait: false`): one entry per app, in order.
    Finished(Vec<Outcome>),
    List(Vec<AppView>),
    Descriptions(Vec<Description>),
    Env(Vec<WorkerEnv>),
    Specs(Vec<AppSpec>),
    LogFiles(Vec<LogFiles>),
    /// Signal sent to these processes.
    Signalled(Vec<u32>),
    /// The daemon has stopped every app and ends now.
    Killed,
    /// The new program can read the state; the daemon becomes it in a moment.
    Upgrading,
    HowUpgraded(HowUpgraded),
}

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HowUpgraded {
    UnderWay,
    Done {
        version: String,
    },
    Failed {
        why: String,
    },
    /// The daemon knows nothing of it.
    Unknown,
}

/// What became of one app in a long action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub app: AppName,
    pub kind: OperationKind,
    pub took_ms: u64,
    /// As it is now; absent once deleted.
    pub view: Option<AppView>,
    pub failure: Option<Failure>,
    /// What cannot be done for it here.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What happened, to what, why, and what to type next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub code: FailureCode,
    pub message: String,
    pub hint: Option<String>,
    /// The last log lines of the worker that failed, oldest first.
    pub log: Vec<String>,
}

impl Failure {
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            log: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdminView {
    pub address: SocketAddr,
    /// The file that says so.
    pub source: PathBuf,
    /// Why it does not listen there.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerEnv {
    pub app: AppName,
    pub instance: u16,
    pub pid: Option<u32>,
    pub env: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogFiles {
    pub app: AppName,
    pub out: PathBuf,
    pub err: PathBuf,
}
