//! `rsup describe`: everything about an app, in sections.

use std::path::Path;
use std::time::Duration;

use super::list::is_past;
use super::style::{Look, Paint, Phase};
use super::units::{bytes, count, duration, harmless, round};
use crate::config::{AppSpec, Balance, Check, Named, Probe, RestartPolicy, short_commit};
use crate::core::{AppView, Description, WorkerPhase, WorkerView};
use crate::exit::signal_name;

/// Width of the field names.
const FIELD: usize = 12;

/// The descriptions, with an empty line between them.
pub fn descriptions(all: &[Description], look: Look) -> String {
    all.iter()
        .map(|one| description(one, look))
        .collect::<Vec<_>>()
        .join("\n")
}

fn description(it: &Description, look: Look) -> String {
    let mut page = Page {
        text: String::new(),
        look,
    };
    let (app, spec) = (&it.app, &it.spec);
    let phase = Phase::from(app.phase);
    let ready = app
        .workers
        .iter()
        .filter(|worker| worker.phase == WorkerPhase::Ready)
        .count();
    page.line(&format!(
        "{}  {}  {ready} of {} ready, revision {}",
        look.paint(Paint::Bold, app.name.as_str()),
        look.paint(phase.paint, &look.phase(phase)),
        count(app.instances.into(), "worker"),
        app.revision
    ));
    if let Some(operation) = &app.operation {
        page.field(
            "under way",
            &format!(
                "{} for {}",
                operation.kind.as_str(),
                duration(operation.since_ms)
            ),
        );
    }
    if let Some(reason) = &app.reason {
        page.field("reason", reason);
    }
    page.field(
        "command",
        &shlex::try_join(spec.command.iter().map(String::as_str))
            .unwrap_or_else(|_| spec.command.join(" ")),
    );
    page.field("folder", &folder(spec));
    page.field(
        "file",
        &match (&spec.source, &spec.source_resolved) {
            (Some(named), Some(actual)) => both(named, actual),
            (Some(named), None) => shown(named),
            (None, _) => "none; started from the command line".into(),
        },
    );
    if !app.listen.is_empty() {
        let balance = match spec.balance {
            Balance::Random => "",
            Balance::SourceIp => " (sticky by source address)",
        };
        page.field("listens on", &format!("{}{balance}", app.listen.join(", ")));
    }
    if let Some(sockets) = &it.sockets {
        page.field("sockets", sockets);
    }
    page.field("out log", &shown(&it.out_log));
    page.field("err log", &shown(&it.err_log));
    if app.relayed > 0 {
        page.field(
            "relayed",
            &format!(
                "{} that no worker was there to accept",
                count(app.relayed, "connection")
            ),
        );
    }

    if !app.workers.is_empty() {
        page.section("Workers");
        let mut workers: Vec<_> = app.workers.iter().collect();
        workers.sort_by_key(|worker| (worker.instance, worker.generation));
        for worker in workers {
            page.worker(app, worker);
        }
    }

    page.section("Settings");
    page.settings(spec);

    if !it.events.is_empty() {
        page.section("Events");
        for event in &it.events {
            page.line(&format!(
                "  {:>9} ago  {}",
                duration(event.age_ms),
                harmless(&event.text)
            ));
        }
    }
    if !it.notes.is_empty() {
        page.section("Notes");
        for note in &it.notes {
            page.line(&format!("  {}", harmless(note)));
        }
    }
    page.text
}

fn folder(spec: &AppSpec) -> String {
    let mut text = both(&spec.cwd, &spec.cwd_resolved);
    if let Some(commit) = spec.folder.as_ref().and_then(|it| it.commit.as_deref()) {
        text.push_str(&format!(" (commit {})", short_commit(commit)));
    }
    text
}

/// A path as the settings name it, and where its links led at the last start or reload.
fn both(named: &Path, actual: &Path) -> String {
    if named == actual {
        shown(named)
    } else {
        format!("{} → {}", shown(named), shown(actual))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

struct Page {
    text: String,
    look: Look,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn section(&mut self, title: &str) {
        self.text.push('\n');
        let title = self.look.paint(Paint::Bold, title);
        self.line(&format!("  {title}"));
    }

    fn field(&mut self, name: &str, value: &str) {
        let name = self.look.paint(Paint::Dim, &format!("{name:<FIELD$}"));
        self.line(&format!("  {name} {}", harmless(value)));
    }

    fn worker(&mut self, app: &AppView, worker: &WorkerView) {
        let phase = Phase::from(worker.phase);
        let status = self.look.phase(phase);
        let padded = format!("{status:<10}");
        let mut facts = Vec::new();
        facts.extend(worker.pid.map(|pid| format!("pid {pid}")));
        facts.extend(worker.uptime_ms.map(|ms| format!("up {}", duration(ms))));
        facts.extend(
            worker
                .next_start_ms
                .map(|ms| format!("next start in {}", duration(ms))),
        );
        if worker.restarts > 0 {
            facts.push(count(worker.restarts.into(), "restart"));
        }
        facts.extend(worker.cpu.map(|cpu| format!("{cpu:.1}% cpu")));
        facts.extend(worker.memory.map(bytes));
        facts.push(format!("revision {}", worker.revision));
        facts.push(format!("slot {}", worker.slot));
        let line = format!(
            "  {}:{}  {}  {}",
            app.name,
            worker.instance,
            self.look.paint(phase.paint, &padded),
            facts.join(", ")
        );
        self.line(&line);
        if let Some(reason) = &worker.reason {
            let past = if is_past(app, worker) {
                "last restarted: "
            } else {
                ""
            };
            let reason = self
                .look
                .paint(Paint::Dim, &format!("{past}{}", harmless(reason)));
            self.line(&format!("    {reason}"));
        }
    }

    fn settings(&mut self, spec: &AppSpec) {
        self.field("readiness", &probe(&spec.readiness));
        if let Some(liveness) = &spec.liveness {
            self.field("liveness", &probe(liveness));
        }
        self.field(
            "timeouts",
            &format!(
                "listen {}, drain {}, kill {}",
                time(spec.listen_timeout),
                time(spec.drain_timeout),
                time(spec.kill_timeout)
            ),
        );
        if let Some(max) = spec.max_memory {
            self.field(
                "max memory",
                &format!("{} for each worker", round(&bytes(max))),
            );
        }
        if let Some(who) = &spec.run_as {
            self.field(
                "runs as",
                &format!(
                    "user {} ({}), group {} ({})",
                    who.user, who.uid, who.group, who.gid
                ),
            );
        }
        if spec.listen.iter().any(|address| address.tcp().is_none()) {
            self.field("socket", &socket_file(spec));
        }
        let limits = limits(spec);
        if !limits.is_empty() {
            self.field("limits", &limits.join(", "));
        }
        self.field("stop", &signal_name(spec.stop.signal));
        let restart = &spec.restart;
        let policy = match restart.policy {
            RestartPolicy::Always => "always",
            RestartPolicy::OnFailure => "on failure",
            RestartPolicy::Never => "never",
        };
        let limit = format!(
            "{policy}, given up after {} within {} each",
            count(restart.max_restarts.into(), "exit"),
            time(restart.min_uptime)
        );
        self.field(
            "restart",
            if restart.policy == RestartPolicy::Never {
                policy
            } else {
                &limit
            },
        );
        let reload = &spec.reload;
        let rollback = if reload.auto_rollback {
            ""
        } else {
            ", no rollback on failure"
        };
        let settle = if reload.min_ready.is_zero() {
            String::new()
        } else {
            format!(", each ready for {}", time(reload.min_ready))
        };
        self.field(
            "reload",
            &format!(
                "{} at a time, within {}{settle}{rollback}",
                reload.max_surge,
                time(reload.deadline)
            ),
        );
        self.field(
            "environment",
            &format!(
                "{} of its own; `rsup env {}` shows all",
                count(spec.env.len() as u64, "variable"),
                spec.name
            ),
        );
    }
}

/// Owner and mode of the app's unix socket files.
fn socket_file(spec: &AppSpec) -> String {
    let mode = spec.socket_file().mode.map_or_else(
        || "mode by rsup's umask".to_owned(),
        |mode| format!("mode {mode:04o}"),
    );
    let who = |said: &Option<Named>, user: Option<(&str, u32)>| {
        let user = user.map(|(name, id)| format!("{name} ({id})"));
        said.as_ref()
            .map(|named| format!("{} ({})", named.name, named.id))
            .or(user)
            .unwrap_or_else(|| "as rsup".to_owned())
    };
    let run_as = spec.run_as.as_ref();
    let owner = who(
        &spec.socket.owner,
        run_as.map(|who| (who.user.as_str(), who.uid)),
    );
    let group = who(
        &spec.socket.group,
        run_as.map(|who| (who.group.as_str(), who.gid)),
    );
    format!("{mode}, owner {owner}, group {group}")
}

fn limits(spec: &AppSpec) -> Vec<String> {
    let limits = &spec.limits;
    let mut all = Vec::new();
    all.extend(
        limits
            .memory
            .map(|most| format!("memory {}", round(&bytes(most)))),
    );
    all.extend(limits.cpu.map(|cores| format!("cpu {cores}")));
    all.extend(limits.tasks.map(|most| format!("tasks {most}")));
    all.extend(limits.nofile.map(|most| format!("open files {most}")));
    all.extend(limits.nice.map(|nice| format!("nice {nice}")));
    all.extend(spec.umask.map(|mask| format!("umask {mask:03o}")));
    all.extend(
        limits
            .capabilities
            .map(|keep| format!("capabilities {keep}")),
    );
    all.extend(limits.no_new_privs.then(|| "no new privileges".to_owned()));
    all
}

fn time(time: Duration) -> String {
    round(&duration(
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
    ))
}

fn probe(probe: &Probe) -> String {
    let check = match &probe.check {
        Check::Http { path, .. } => format!("GET {path}"),
        Check::Tcp => "accepts a connection".into(),
        Check::Exec { command } => command.join(" "),
        Check::Notify => return "the app says so (READY=1 or process.send('ready'))".into(),
        Check::Alive => return "alive for restart.min_uptime".into(),
    };
    let mut text = format!(
        "{check} every {}, timeout {}",
        time(probe.interval),
        time(probe.timeout)
    );
    if probe.failure_threshold != 1 {
        text.push_str(&format!(", {} in a row to fail", probe.failure_threshold));
    }
    text
}
