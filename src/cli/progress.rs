//! The steps of a long action: a spinner per app on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::render::{self, Output};
use crate::config::AppName;
use crate::core::Progress as Event;

/// Shows steps on stderr, so that stdout has the result alone.
pub struct Progress(Kind);

enum Kind {
    Silent,
    Lines,
    Terminal {
        all: MultiProgress,
        apps: Mutex<BTreeMap<AppName, ProgressBar>>,
        style: ProgressStyle,
    },
}

impl Progress {
    /// A spinner on a terminal, lines elsewhere, nothing with `--json`.
    pub fn new(out: &Output) -> Self {
        Self(if out.json {
            Kind::Silent
        } else if out.error_look.terminal {
            Kind::Terminal {
                all: MultiProgress::new(),
                apps: Mutex::default(),
                style: style(out.error_look.color),
            }
        } else {
            Kind::Lines
        })
    }

    /// Shows a step.
    pub fn show(&self, event: &Event) {
        match &self.0 {
            Kind::Silent => {}
            Kind::Lines => render::error_text(&format!("{}\n", render::step(event))),
            Kind::Terminal { all, apps, style } => {
                let mut apps = apps.lock().unwrap_or_else(PoisonError::into_inner);
                let say = |bar: &ProgressBar| {
                    bar.set_length(event.total.into());
                    bar.set_position(event.done.into());
                    bar.set_message(render::activity(event));
                };
                match apps.get(&event.app) {
                    Some(bar) => say(bar),
                    None => {
                        // Drawn once there is a step to show.
                        let hidden =
                            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
                        let bar = hidden
                            .with_style(style.clone())
                            .with_prefix(event.app.to_string());
                        say(&bar);
                        let bar = all.add(bar);
                        bar.enable_steady_tick(Duration::from_millis(100));
                        apps.insert(event.app.clone(), bar);
                    }
                }
            }
        }
    }

    /// Removes the spinners from the screen.
    pub fn clear(&self) {
        if let Kind::Terminal { all, apps, .. } = &self.0 {
            for bar in apps.lock().unwrap_or_else(PoisonError::into_inner).values() {
                bar.finish_and_clear();
            }
            drop(all.clear());
        }
    }
}

fn style(color: bool) -> ProgressStyle {
    let template = if color {
        "{spinner:.yellow} {prefix:.bold} {pos}/{len}  {wide_msg:.dim} {elapsed:.dim}"
    } else {
        "{spinner} {prefix} {pos}/{len}  {wide_msg} {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
