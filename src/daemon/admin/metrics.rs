//! `/metrics`: the text that Prometheus reads. It is OpenMetrics, written so that readers of the older
//! format (`text/plain; version=0.0.4`) understand it too.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::time::Duration;

use jiff::Timestamp;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::ask::{AppFacts, Facts};
use crate::core::WorkerPhase;
use crate::logs::{Loss, Stats};

const PHASES: [WorkerPhase; 10] = [
    WorkerPhase::Spawning,
    WorkerPhase::Starting,
    WorkerPhase::Ready,
    WorkerPhase::Unready,
    WorkerPhase::Draining,
    WorkerPhase::Stopping,
    WorkerPhase::Killing,
    WorkerPhase::Backoff,
    WorkerPhase::Errored,
    WorkerPhase::Exited,
];

/// The whole text. `logs` is absent if the log thread did not answer.
pub fn render(facts: Facts, logs: Option<Stats>) -> Result<String, Error> {
    let Facts {
        uptime,
        memory,
        apps,
        reloads,
        console,
        messages,
        logs: _,
    } = facts;
    let mut registry = Registry::default();
    let reloads = reloads
        .into_iter()
        .flat_map(|(app, count)| {
            let app = app.to_string();
            [
                (app.clone(), "succeeded", count.succeeded),
                (app, "failed", count.failed),
            ]
        })
        .collect();
    registry.register_collector(Box::new(Scrape {
        uptime,
        memory,
        apps,
        reloads,
        console,
        messages,
        logs,
    }));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

struct Scrape {
    uptime: Duration,
    memory: Option<u64>,
    apps: Vec<AppFacts>,
    reloads: Vec<(String, &'static str, u64)>,
    console: Option<Loss>,
    messages: Option<Loss>,
    logs: Option<Stats>,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scrape")
    }
}

type Labels = Vec<(&'static str, String)>;

/// What an instance's workers, of which there are two while one is replaced, have together.
#[derive(Default)]
struct Instance {
    restarts: u64,
    memory: u64,
    cpu: f64,
}

impl Collector for Scrape {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        let to = &mut to;
        let one = |value| [(Labels::new(), value)];
        gauge(
            to,
            "rsup_up",
            "Whether rsup's main loop answers",
            None,
            one(1_u64),
        )?;
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauge(
            to,
            "rsup_build_info",
            "The version of rsup",
            None,
            [(version, 1_u64)],
        )?;
        let now = Timestamp::now().as_duration().unsigned_abs();
        let started = now.saturating_sub(self.uptime).as_secs_f64();
        gauge(
            to,
            "process_start_time",
            "When rsup was started, since the epoch",
            Some(Unit::Seconds),
            one_f64(started),
        )?;
        let memory = self.memory.map(|bytes| (Labels::new(), bytes));
        gauge(
            to,
            "process_resident_memory",
            "Memory of rsup itself",
            Some(Unit::Bytes),
            memory,
        )?;
        self.apps(to)?;
        self.workers(to)?;
        let reloads = self.reloads.iter().map(|(app, result, count)| {
            (
                vec![("app", app.clone()), ("result", (*result).to_owned())],
                *count,
            )
        });
        counter(to, "rsup_reloads", "Reloads that have ended", None, reloads)?;
        self.logs(to)
    }
}

impl Scrape {
    fn apps(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let of = |value: fn(&AppFacts) -> u64| {
            self.apps
                .iter()
                .map(move |app| (app_label(app), value(app)))
        };
        gauge(
            to,
            "rsup_app_instances",
            "Workers that an app should have",
            None,
            of(|app| app.view.instances.into()),
        )?;
        gauge(
            to,
            "rsup_app_revision",
            "The revision that new workers of an app get",
            None,
            of(|app| app.view.revision),
        )?;
        let workers = self.apps.iter().flat_map(|app| {
            PHASES.into_iter().map(move |phase| {
                let count = app
                    .view
                    .workers
                    .iter()
                    .filter(|worker| worker.phase == phase)
                    .count();
                let mut labels = app_label(app);
                labels.push(("phase", phase.as_str().to_owned()));
                (labels, count as u64)
            })
        });
        gauge(
            to,
            "rsup_app_workers",
            "Workers that an app has, by what they are doing",
            None,
            workers,
        )?;
        let help = "Connections that wait because no worker is ready";
        gauge(
            to,
            "rsup_app_held_connections",
            help,
            None,
            of(|app| app.view.held),
        )?;
        let help = "Connections that rsup relayed because no worker was there to accept them";
        counter(
            to,
            "rsup_app_relayed_connections",
            help,
            None,
            of(|app| app.view.relayed),
        )
    }

    fn workers(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut instances: BTreeMap<(&str, u16), Instance> = BTreeMap::new();
        for app in &self.apps {
            for worker in &app.view.workers {
                let instance = instances
                    .entry((app.view.name.as_str(), worker.instance))
                    .or_default();
                instance.restarts = instance.restarts.max(worker.restarts.into());
                instance.memory += worker.memory.unwrap_or(0);
                instance.cpu += app
                    .cpu
                    .get(&worker.generation)
                    .copied()
                    .unwrap_or_default()
                    .as_secs_f64();
            }
        }
        let labels = |(app, instance): &(&str, u16)| -> Labels {
            vec![("app", (*app).to_owned()), ("worker", instance.to_string())]
        };
        let restarts = instances
            .iter()
            .map(|(key, instance)| (labels(key), instance.restarts));
        counter(
            to,
            "rsup_worker_restarts",
            "Restarts of a worker since its app was started",
            None,
            restarts,
        )?;
        let memory = instances
            .iter()
            .map(|(key, instance)| (labels(key), instance.memory));
        let help = "Resident memory of a worker, with its children; while it is replaced, of both";
        gauge(to, "rsup_worker_memory", help, Some(Unit::Bytes), memory)?;
        let cpu = instances
            .iter()
            .map(|(key, instance)| (labels(key), instance.cpu));
        let help = "Processor time of the processes that a worker has now, with their children";
        counter(to, "rsup_worker_cpu", help, Some(Unit::Seconds), cpu)
    }

    fn logs(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let logs = self.logs.as_ref();
        let of = |value: fn(&Stats) -> u64| logs.map(|stats| (Labels::new(), value(stats)));
        counter(
            to,
            "rsup_log_lines",
            "Lines that workers have printed",
            None,
            of(|stats| stats.lines),
        )?;
        counter(
            to,
            "rsup_log_read",
            "What workers have printed",
            Some(Unit::Bytes),
            of(|stats| stats.bytes),
        )?;
        let lost = |value: fn(&Loss) -> u64, files: Option<u64>| {
            let files = files.map(|count| (vec![("sink", "files".to_owned())], count));
            let console = self
                .console
                .as_ref()
                .map(|loss| (vec![("sink", "stdout".to_owned())], value(loss)));
            let messages = self
                .messages
                .as_ref()
                .map(|loss| (vec![("sink", "stderr".to_owned())], value(loss)));
            files.into_iter().chain(console).chain(messages)
        };
        let help = "Lines that could not be written";
        counter(
            to,
            "rsup_log_lost_lines",
            help,
            None,
            lost(|loss| loss.lines, logs.map(|stats| stats.lost_lines)),
        )?;
        let help = "What could not be written of them";
        counter(
            to,
            "rsup_log_lost",
            help,
            Some(Unit::Bytes),
            lost(|loss| loss.bytes, logs.map(|stats| stats.lost_bytes)),
        )
    }
}

fn app_label(app: &AppFacts) -> Labels {
    vec![("app", app.view.name.to_string())]
}

fn one_f64(value: f64) -> [(Labels, f64); 1] {
    [(Labels::new(), value)]
}

fn gauge<N: EncodeGaugeValue>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, N)>,
) -> Result<(), Error> {
    let mut family = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    for (labels, value) in samples {
        let metric = ConstGauge::new(value);
        if labels.is_empty() {
            return metric.encode(family);
        }
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counter<N: EncodeCounterValue>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, N)>,
) -> Result<(), Error> {
    let mut family = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
    for (labels, value) in samples {
        let metric = ConstCounter::new(value);
        if labels.is_empty() {
            return metric.encode(family);
        }
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
