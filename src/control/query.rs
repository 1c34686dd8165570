//! Queries, which are answered at once and change nothing, and the type of each answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ActionId, Outcome, Reply, Request, Target};
use crate::config::{AppName, AppSpec};
use crate::core::{AppPhase, AppView, Description, Settings};
use crate::model::Cause;

/// A query; each has a type of its own that implements [`Ask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    List,
    Snapshot,
    Describe { targets: Vec<Target> },
    Env { targets: Vec<Target> },
    LogFiles { targets: Vec<Target> },
}

/// A request with a typed answer: the daemon can give no other, the client expects no other.
pub trait Ask {
    type Reply;
    fn request(&self) -> Request;
    fn reply(reply: Self::Reply) -> Reply;
    /// `None`: the reply is another request's.
    fn understand(reply: Reply) -> Option<Self::Reply>;
}

/// Asks whether a daemon runs, and which version.
#[derive(Clone, Copy, Debug)]
pub struct Ping;

/// The condition of all apps.
#[derive(Clone, Copy, Debug)]
pub struct List;

/// All apps as they run now, with their settings, so that the client can re-read their files.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot;

/// Everything about these apps.
#[derive(Clone, Debug)]
pub struct Describe(pub Vec<Target>);

/// The environment of these workers.
#[derive(Clone, Debug)]
pub struct Env(pub Vec<Target>);

/// The log files of these apps.
#[derive(Clone, Debug)]
pub struct FindLogs(pub Vec<Target>);

/// See [`Request::Upgrade`].
#[derive(Clone, Debug)]
pub struct Upgrade {
    pub program: PathBuf,
    pub token: u64,
    pub force: bool,
}

/// See [`Request::HowUpgraded`].
#[derive(Clone, Copy, Debug)]
pub struct AskHowUpgraded(pub u64);

/// See [`Request::Signal`]; answered with the processes that got the signal.
#[derive(Clone, Debug)]
pub struct Signal {
    pub targets: Vec<Target>,
    pub signal: i32,
}

/// See [`Request::Action`].
#[derive(Clone, Debug)]
pub struct Act {
    pub id: ActionId,
    pub action: super::Action,
    pub settings: Vec<Settings>,
    /// Who asked.
    pub cause: Cause,
}

/// See [`Request::Kill`].
#[derive(Clone, Copy, Debug)]
pub struct Kill(pub ActionId);

macro_rules! ask {
    ($($what:ty: $self:ident => $request:expr, $type:ty as $pattern:pat => $value:expr, $made:ident => $reply:expr;)*) => {$(
        impl Ask for $what {
            type Reply = $type;

            fn request(&self) -> Request {
                let $self = self.clone();
                $request
            }

            fn reply($made: $type) -> Reply {
                $reply
            }

            fn understand(reply: Reply) -> Option<$type> {
                if let $pattern = reply { Some($value) } else { None }
            }
        }
    )*};
}

ask! {
    Ping: _it => Request::Ping, Pong as Reply::Pong(pong) => pong, pong => Reply::Pong(pong);
    List: _it => Request::Query(Query::List), Listing as Reply::List(list) => list, list => Reply::List(list);
    Snapshot: _it => Request::Query(Query::Snapshot), Vec<Known> as Reply::Snapshot(all) => all, all => Reply::Snapshot(all);
    Describe: it => Request::Query(Query::Describe { targets: it.0 }), Vec<Description> as Reply::Descriptions(all) => all, all => Reply::Descriptions(all);
    Env: it => Request::Query(Query::Env { targets: it.0 }), Vec<WorkerEnv> as Reply::Env(all) => all, all => Reply::Env(all);
    FindLogs: it => Request::Query(Query::LogFiles { targets: it.0 }), Vec<LogFiles> as Reply::LogFiles(all) => all, all => Reply::LogFiles(all);
    Upgrade: it => Request::Upgrade { program: it.program, token: it.token, force: it.force }, Upgrading as Reply::Upgrading => Upgrading, _it => Reply::Upgrading;
    AskHowUpgraded: it => Request::HowUpgraded { token: it.0 }, HowUpgraded as Reply::HowUpgraded(how) => how, how => Reply::HowUpgraded(how);
    Signal: it => Request::Signal { targets: it.targets, signal: it.signal }, Vec<u32> as Reply::Signalled(pids) => pids, pids => Reply::Signalled(pids);
    Act: it => Request::Action { id: it.id, action: it.action, settings: it.settings, cause: it.cause }, Vec<Outcome> as Reply::Finished(all) => all, all => Reply::Finished(all);
    Kill: it => Request::Kill { id: it.0 }, Killed as Reply::Killed => Killed, _it => Reply::Killed;
}

/// The daemon itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    pub pid: u32,
    pub version: String,
    pub protocol: u32,
    pub uptime_ms: u64,
    pub memory: Option<u64>,
    /// The admin listener, if the configuration asks for one.
    #[serde(default)]
    pub admin: Option<AdminView>,
    /// Present problems of the daemon itself, as opposed to those of an app.
    #[serde(default)]
    pub troubles: Vec<String>,
}

/// The answer to [`List`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    pub apps: Vec<AppView>,
    /// Present problems of the daemon itself, as opposed to those of an app.
    pub troubles: Vec<String>,
}

/// One app of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The settings of its next workers.
    pub spec: AppSpec,
    pub view: AppView,
}

impl Known {
    /// Whether it is neither stopped nor being stopped.
    pub fn is_up(&self) -> bool {
        match self.view.phase {
            AppPhase::Starting
            | AppPhase::Ready
            | AppPhase::Degraded
            | AppPhase::Reloading
            | AppPhase::Errored => true,
            AppPhase::Stopping | AppPhase::Stopped => false,
        }
    }
}

/// Every app is stopped and the daemon ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed;

/// The new program can read the state; the daemon becomes it in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrading;

/// The outcome of an upgrade.
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
    /// The daemon does not know this upgrade.
    Unknown,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdminView {
    pub address: SocketAddr,
    /// The file that configures it.
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
    /// The user that the app runs as, if it names one: the files may be its own.
    #[serde(default)]
    pub user: Option<u32>,
}
