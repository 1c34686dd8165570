//! The table of `rsup list`: one line per worker, grouped by app, only as wide as the terminal.

use std::fmt::Write;

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};

use super::style::{Look, Paint, Phase};
use super::units::{bytes, count, duration, harmless};
use crate::core::{AppPhase, AppView, WorkerPhase, WorkerView};

/// Blanks between columns.
const GAP: u16 = 2;

/// A column, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Name,
    Pid,
    Status,
    Uptime,
    Restarts,
    Cpu,
    Memory,
    Revision,
    Notes,
}

impl Column {
    const ALL: [Self; 9] = [
        Self::Name,
        Self::Pid,
        Self::Status,
        Self::Uptime,
        Self::Restarts,
        Self::Cpu,
        Self::Memory,
        Self::Revision,
        Self::Notes,
    ];

    /// The columns that are dropped on a narrow terminal, first ones first. The notes move below
    /// the table.
    const LEAST_WANTED: [Self; 7] = [
        Self::Notes,
        Self::Revision,
        Self::Cpu,
        Self::Restarts,
        Self::Uptime,
        Self::Memory,
        Self::Pid,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Name => "APP",
            Self::Pid => "PID",
            Self::Status => "STATUS",
            Self::Uptime => "UPTIME",
            Self::Restarts => "RESTARTS",
            Self::Cpu => "CPU",
            Self::Memory => "MEMORY",
            Self::Revision => "REV",
            Self::Notes => "LISTEN",
        }
    }

    fn alignment(self) -> CellAlignment {
        match self {
            Self::Name | Self::Status | Self::Notes => CellAlignment::Left,
            _ => CellAlignment::Right,
        }
    }
}

/// A line of the table: a worker, or an app that has none.
struct Line<'a> {
    app: &'a AppView,
    worker: Option<&'a WorkerView>,
    /// The first line of its app, which also shows the app as a whole.
    first: bool,
}

impl Line<'_> {
    fn phase(&self) -> Phase {
        self.worker
            .map_or_else(|| self.app.phase.into(), |worker| worker.phase.into())
    }

    fn text(&self, column: Column, look: Look) -> String {
        let dash = || "-".to_owned();
        let of_worker = |value: &dyn Fn(&WorkerView) -> Option<String>| {
            self.worker.and_then(value).unwrap_or_else(dash)
        };
        match column {
            Column::Name => match self.worker {
                Some(worker) => format!("{}:{}", self.app.name, worker.instance),
                None => self.app.name.to_string(),
            },
            Column::Pid => of_worker(&|worker| worker.pid.map(|pid| pid.to_string())),
            Column::Status => look.phase(self.phase()),
            Column::Uptime => of_worker(&|worker| worker.uptime_ms.map(duration)),
            Column::Restarts => of_worker(&|worker| Some(worker.restarts.to_string())),
            Column::Cpu => of_worker(&|worker| worker.cpu.map(|cpu| format!("{cpu:.1}%"))),
            Column::Memory => of_worker(&|worker| worker.memory.map(bytes)),
            Column::Revision => self
                .worker
                .map_or(self.app.revision, |worker| worker.revision)
                .to_string(),
            Column::Notes if self.first => harmless(&self.app.listen.join(", ")),
            Column::Notes => String::new(),
        }
    }

    fn paint(&self, column: Column, text: &str) -> Paint {
        match column {
            Column::Status => self.phase().paint,
            Column::Restarts if text != "0" && text != "-" => Paint::Busy,
            Column::Name | Column::Memory | Column::Cpu | Column::Uptime if text != "-" => {
                Paint::Plain
            }
            _ if text.is_empty() => Paint::Plain,
            _ => Paint::Dim,
        }
    }
}

/// The table of all apps, with remarks on each below it.
pub fn list(apps: &[AppView], look: Look) -> String {
    if apps.is_empty() {
        return String::new();
    }
    let lines: Vec<Line> = apps.iter().flat_map(lines_of).collect();
    let mut columns = Column::ALL.to_vec();
    if apps.iter().all(|app| app.listen.is_empty()) {
        columns.retain(|column| *column != Column::Notes);
    }
    let mut table = table(&lines, &columns, look);
    if let Some(width) = look.width {
        for unwanted in Column::LEAST_WANTED {
            if width_of(&table) <= usize::from(width) {
                break;
            }
            columns.retain(|column| *column != unwanted);
            table = self::table(&lines, &columns, look);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let remarks: String = apps
        .iter()
        .map(|app| remarks(app, columns.contains(&Column::Notes), look))
        .collect();
    if !remarks.is_empty() {
        text.push('\n');
        text.push_str(&remarks);
    }
    text
}

fn lines_of(app: &AppView) -> Vec<Line<'_>> {
    let mut workers: Vec<_> = app.workers.iter().collect();
    workers.sort_by_key(|worker| (worker.instance, worker.generation));
    if workers.is_empty() {
        return vec![Line {
            app,
            worker: None,
            first: true,
        }];
    }
    workers
        .into_iter()
        .enumerate()
        .map(|(index, worker)| Line {
            app,
            worker: Some(worker),
            first: index == 0,
        })
        .collect()
}

fn table(lines: &[Line], columns: &[Column], look: Look) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if look.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(columns.iter().map(|column| {
        let cell = Cell::new(column.title()).set_alignment(column.alignment());
        if look.color {
            cell.add_attribute(Attribute::Dim)
        } else {
            cell
        }
    }));
    for line in lines {
        table.add_row(columns.iter().map(|column| {
            let text = line.text(*column, look);
            let paint = line.paint(*column, &text);
            let cell = Cell::new(text).set_alignment(column.alignment());
            match paint.cell() {
                Some(color) if look.color => cell.fg(color),
                _ => cell,
            }
        }));
    }
    let last = columns.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { GAP }));
    }
    table
}

fn width_of(table: &Table) -> usize {
    let widths = table.column_max_content_widths();
    let gaps = widths.len().saturating_sub(1) * usize::from(GAP);
    widths.into_iter().map(usize::from).sum::<usize>() + gaps
}

/// Remarks on an app that the table has no column for.
fn remarks(app: &AppView, listens_shown: bool, look: Look) -> String {
    let mut text = String::new();
    let mut remark = |paint: Paint, words: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {}",
            look.paint(Paint::Bold, &format!("{}:", app.name)),
            look.paint(paint, words)
        );
    };
    if !listens_shown && !app.listen.is_empty() {
        remark(
            Paint::Dim,
            &format!("listens on {}", harmless(&app.listen.join(", "))),
        );
    }
    if let Some(operation) = &app.operation {
        remark(
            Paint::Busy,
            &format!(
                "{} under way for {}",
                operation.kind.as_str(),
                duration(operation.since_ms)
            ),
        );
    }
    if app.held > 0 {
        let waiting = count(app.held, "connection");
        remark(
            Paint::Busy,
            &format!("{waiting} held until a worker is ready"),
        );
    }
    let paint = match app.phase {
        AppPhase::Errored => Paint::Bad,
        AppPhase::Degraded => Paint::Busy,
        _ => Paint::Plain,
    };
    if let Some(reason) = &app.reason {
        remark(paint, &harmless(reason));
    }
    let unwell = |worker: &&WorkerView| {
        matches!(
            worker.phase,
            WorkerPhase::Unready
                | WorkerPhase::Backoff
                | WorkerPhase::Errored
                | WorkerPhase::Exited
        )
    };
    for worker in app.workers.iter().filter(unwell) {
        let reason = worker
            .reason
            .as_ref()
            .filter(|reason| app.reason.as_ref() != Some(reason))
            .map(|reason| harmless(reason));
        let next = worker
            .next_start_ms
            .map(|ms| format!("next start in {}", duration(ms)));
        let words: Vec<_> = reason.into_iter().chain(next).collect();
        if !words.is_empty() {
            remark(
                paint,
                &format!("worker {}: {}", worker.instance, words.join("; ")),
            );
        }
    }
    // The cause of past restarts is shown as past.
    for worker in app.workers.iter().filter(|worker| is_past(app, worker)) {
        if let Some(reason) = &worker.reason {
            remark(
                Paint::Dim,
                &format!(
                    "worker {} was last restarted: {}",
                    worker.instance,
                    harmless(reason)
                ),
            );
        }
    }
    text
}

/// Whether a worker's reason is that of its last restart: the worker is well, and no action is
/// under way.
pub fn is_past(app: &AppView, worker: &WorkerView) -> bool {
    worker.phase == WorkerPhase::Ready && worker.restarts > 0 && app.operation.is_none()
}
