//! What a client sends, and the versions of the protocol.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Accepted, Action, ActionId, Query, Target};
use crate::core::Settings;
use crate::model::Cause;

/// Raised when an older peer could misread a frame. A daemon refuses other versions with a message,
/// except for the requests of [`COMMON`].
pub const VERSION: u32 = 2;

/// The version of the requests that every version understands: those that an upgrade needs. See
/// [`Request::is_common`].
pub const COMMON: u32 = 1;

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub version: u32,
    pub request: Request,
    /// False: the daemon answers as soon as the action is accepted (`--no-wait`).
    pub wait: bool,
}

/// The outermost kinds of request; each has a typed sender, see [`super::Ask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Ping,
    /// Become another program, with workers and sockets untouched. Answered by [`super::Upgrading`]
    /// once the program has shown that it can read the state; the outcome is asked for by
    /// [`super::HowUpgraded`].
    Upgrade {
        program: PathBuf,
        /// The client's name for this upgrade.
        token: u64,
        /// Do not wait for connections that the daemon itself passes on.
        force: bool,
    },
    HowUpgraded {
        token: u64,
    },
    /// From a client of version 1: continue to wait for actions that an earlier daemon, which died,
    /// had accepted.
    Await {
        actions: Vec<Accepted>,
        /// The actions are those of a `kill`.
        kill: bool,
    },
    /// Continue to wait for an action that an earlier daemon, which died, may have received.
    /// Refused with [`super::FailureCode::UnknownAction`] if it had not: then it may be sent again.
    Outcome {
        id: ActionId,
    },
    /// Answered at once; changes nothing.
    Query(Query),
    /// Answered once the signal is sent to the processes.
    Signal {
        targets: Vec<Target>,
        signal: i32,
    },
    /// A change that may take long. Sent twice with the same id, it is done once.
    Action {
        id: ActionId,
        action: Action,
        /// `[supervisor]` of the files that the apps are from.
        #[serde(default)]
        settings: Vec<Settings>,
        #[serde(default)]
        cause: Cause,
    },
    /// Stop every app gracefully and end the daemon.
    Kill {
        id: ActionId,
    },
}

impl Request {
    /// Whether the request and its answer mean the same in every version.
    pub fn is_common(&self) -> bool {
        match self {
            Self::Ping
            | Self::Upgrade { .. }
            | Self::HowUpgraded { .. }
            | Self::Await { .. }
            | Self::Outcome { .. } => true,
            Self::Query(_) | Self::Signal { .. } | Self::Action { .. } | Self::Kill { .. } => false,
        }
    }

    /// The id by which a later daemon knows this action.
    pub fn action_id(&self) -> Option<ActionId> {
        match self {
            Self::Action { id, .. } | Self::Kill { id } | Self::Outcome { id } => Some(*id),
            Self::Ping
            | Self::Upgrade { .. }
            | Self::HowUpgraded { .. }
            | Self::Await { .. }
            | Self::Query(_)
            | Self::Signal { .. } => None,
        }
    }

    /// Whether a client without an answer may ask again: repeating it does nothing twice.
    pub fn may_be_repeated(&self) -> bool {
        match self {
            Self::Ping
            | Self::HowUpgraded { .. }
            | Self::Await { .. }
            | Self::Outcome { .. }
            | Self::Query(_)
            | Self::Action { .. }
            | Self::Kill { .. } => true,
            Self::Upgrade { .. } | Self::Signal { .. } => false,
        }
    }
}

impl Call {
    /// A call in the oldest version that has the request.
    pub fn new(request: Request, wait: bool) -> Self {
        let version = if request.is_common() { COMMON } else { VERSION };
        Self {
            version,
            request,
            wait,
        }
    }

    /// Decodes the body of a frame.
    ///
    /// # Errors
    /// A message for the client.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        // The version is read first: in another one the rest may mean something else.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let understood = |why: serde_json::Error| format!("the request is not understood: {why}");
        let Versioned { version } = serde_json::from_slice(body).map_err(understood)?;
        let call: Result<Self, String> = serde_json::from_slice(body).map_err(understood);
        if version == VERSION || call.as_ref().is_ok_and(|call| call.request.is_common()) {
            return call;
        }
        let what = format!(
            "the daemon is rsup {} and speaks version {VERSION} of the protocol, this command version {version}",
            env!("CARGO_PKG_VERSION")
        );
        Err(if version < VERSION {
            format!("{what}: use the newer rsup; what was under way goes on")
        } else {
            format!("{what}: `rsup upgrade` makes the daemon the newer one")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_upgrade_takes_is_understood_from_every_version() {
        // As version 1 wrote them; these never change.
        let calls = [
            r#"{"version":1,"request":"ping","wait":true}"#,
            r#"{"version":1,"request":{"how_upgraded":{"token":7}},"wait":true}"#,
            r#"{"version":1,"request":{"upgrade":{"program":"/x","token":7,"force":false}},"wait":true}"#,
            r#"{"version":1,"request":{"await":{"actions":[{"op":3,"app":"web","kind":"reload"}],"kill":false}},"wait":true}"#,
        ];
        for text in calls {
            let call = Call::decode(text.as_bytes()).unwrap();
            assert!(call.request.is_common(), "{text}");
            assert_eq!(serde_json::to_string(&call).unwrap(), text);
            assert_eq!(Call::new(call.request.clone(), true).version, COMMON);
            let future = text.replace("\"version\":1", "\"version\":99");
            assert!(Call::decode(future.as_bytes()).is_ok());
        }
    }

    #[test]
    fn another_version_is_refused_with_the_way_out() {
        let old = Call::decode(br#"{"version":1,"request":{"stop":{"target":"all"}},"wait":true}"#);
        assert!(old.unwrap_err().contains("use the newer rsup"));
        let new = Call::decode(br#"{"version":9,"request":{"query":"list"},"wait":true}"#);
        assert!(new.unwrap_err().contains("`rsup upgrade`"));
    }
}
