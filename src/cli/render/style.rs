//! Colours and signs, where there is a terminal to show them.

use comfy_table::Color;

use crate::core::{AppPhase, WorkerPhase};

/// What an output can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub color: bool,
    /// A terminal: signs, and no more columns than fit.
    pub terminal: bool,
    /// Columns; `None` outside a terminal.
    pub width: Option<u16>,
}

impl Look {
    /// For files and pipes.
    #[cfg(test)]
    pub const PLAIN: Self = Self {
        color: false,
        terminal: false,
        width: None,
    };

    /// Puts a colour around a text.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        match paint.code() {
            Some(code) if self.color => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }

    /// A phase with its sign.
    pub fn phase(self, phase: Phase) -> String {
        if self.terminal {
            format!("{} {}", phase.sign, phase.name)
        } else {
            phase.name.to_owned()
        }
    }
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Good,
    /// In progress, or degraded.
    Busy,
    Bad,
    Dim,
    Bold,
}

impl Paint {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Busy => Some("33"),
            Self::Bad => Some("31"),
            Self::Dim => Some("2"),
            Self::Bold => Some("1"),
        }
    }

    /// The colour for a cell of a table.
    pub fn cell(self) -> Option<Color> {
        match self {
            Self::Plain | Self::Bold => None,
            Self::Good => Some(Color::DarkGreen),
            Self::Busy => Some(Color::DarkYellow),
            Self::Bad => Some(Color::DarkRed),
            Self::Dim => Some(Color::DarkGrey),
        }
    }
}

/// How the phase of an app or a worker is shown.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    pub name: &'static str,
    pub sign: char,
    pub paint: Paint,
}

impl From<WorkerPhase> for Phase {
    fn from(phase: WorkerPhase) -> Self {
        let (sign, paint) = match phase {
            WorkerPhase::Ready => ('●', Paint::Good),
            WorkerPhase::Spawning | WorkerPhase::Starting => ('◐', Paint::Busy),
            WorkerPhase::Draining | WorkerPhase::Stopping | WorkerPhase::Killing => {
                ('◌', Paint::Dim)
            }
            WorkerPhase::Unready | WorkerPhase::Backoff => ('▲', Paint::Busy),
            WorkerPhase::Errored => ('✕', Paint::Bad),
            WorkerPhase::Exited => ('○', Paint::Dim),
        };
        Self {
            name: phase.as_str(),
            sign,
            paint,
        }
    }
}

impl From<AppPhase> for Phase {
    fn from(phase: AppPhase) -> Self {
        let (sign, paint) = match phase {
            AppPhase::Ready => ('●', Paint::Good),
            AppPhase::Starting | AppPhase::Reloading => ('◐', Paint::Busy),
            AppPhase::Stopping => ('◌', Paint::Dim),
            AppPhase::Degraded => ('▲', Paint::Busy),
            AppPhase::Errored => ('✕', Paint::Bad),
            AppPhase::Stopped => ('○', Paint::Dim),
        };
        Self {
            name: phase.as_str(),
            sign,
            paint,
        }
    }
}
