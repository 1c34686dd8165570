//! Why an app is not as it should be. A reason ends with what it explains.

use serde::{Deserialize, Serialize};

/// What `list` shows beside an app.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    pub text: String,
    pub explains: Explains,
}

/// What a reason explains, and so how long it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Explains {
    /// That the last action failed, until the next one.
    #[default]
    Action,
    /// That the app has not the sockets it should have.
    Sockets,
    /// That this instance has no worker which serves.
    Instance(u16),
}

impl Reason {
    pub fn new(explains: Explains, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            explains,
        }
    }
}
