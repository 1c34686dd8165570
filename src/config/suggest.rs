//! "Did you mean": from an unknown key or word to the one that was probably meant.

use super::keys::{self, Section};
use super::raw::{Bad, Entry, Kind, Value};

/// Keys of other supervisors, and rsup's key for each.
static ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &[
            "script",
            "args",
            "interpreter",
            "interpreter_args",
            "node_args",
            "exec_interpreter",
            "startCommand",
            "ExecStart",
            "cmd",
            "exec",
            "program",
        ],
        "write program and arguments as `command`, for example `command = [\"node\", \"server.js\"]`",
    ),
    (
        &["exec_mode"],
        "leave it out: an app with `listen` shares its port among all instances; without, it is a plain process",
    ),
    (
        &["port", "bind", "address", "ports"],
        "write `listen = 3001`; the app finds the port in its environment as PORT",
    ),
    (
        &["uid", "User", "run_as", "runas", "username"],
        "rsup calls it `user`",
    ),
    (&["gid", "Group"], "rsup calls it `group`"),
    (
        &["SupplementaryGroups", "supplementary_groups"],
        "rsup calls it `groups`",
    ),
    (
        &[
            "LimitNOFILE",
            "open_files",
            "ulimit",
            "ulimits",
            "rlimit_nofile",
        ],
        "write `limits = { nofile = 65536 }`",
    ),
    (
        &["MemoryMax", "mem_limit"],
        "write `limits = { memory = \"500M\" }`; `max_memory` replaces the worker before",
    ),
    (
        &["CPUQuota", "cpus", "cpu_quota"],
        "write `limits = { cpu = 1.5 }`, in cores",
    ),
    (
        &["TasksMax", "pids", "pids_limit", "nproc", "LimitNPROC"],
        "write `limits = { tasks = 100 }`",
    ),
    (
        &["NoNewPrivileges"],
        "write `limits = { no_new_privs = true }`",
    ),
    (
        &[
            "AmbientCapabilities",
            "CapabilityBoundingSet",
            "cap_add",
            "cap_drop",
            "caps",
        ],
        "write those to keep: `limits = { capabilities = [\"CAP_NET_BIND_SERVICE\"] }`",
    ),
    (
        &["max_memory_restart", "memory_limit", "memory"],
        "rsup calls it `max_memory`",
    ),
    (&["wait_ready"], "write `readiness = { notify = true }`"),
    (
        &["autorestart"],
        "write `restart = { policy = \"never\" }`, or `\"always\"` or `\"on-failure\"`",
    ),
    (
        &["watch", "ignore_watch", "watch_options", "watch_delay"],
        "rsup does not watch files; run `rsup reload` when they have changed",
    ),
    (
        &["cron_restart", "cron", "schedule"],
        "rsup has no schedule of its own; let cron or a systemd timer run `rsup reload`",
    ),
    (&["stop_exit_codes"], "write `stop = { exit_codes = [0] }`"),
    (
        &["kill_signal", "stop_signal", "stopsignal", "KillSignal"],
        "write `stop = { signal = \"SIGINT\" }`",
    ),
    (
        &["shutdown_with_message"],
        "rsup stops a worker with a signal: `stop = { signal = \"SIGTERM\" }`",
    ),
    (
        &["out_file", "output", "stdout_logfile"],
        "write `log = { out = \"…\" }`",
    ),
    (
        &["error_file", "error", "stderr_logfile"],
        "write `log = { err = \"…\" }`",
    ),
    (
        &["log_file", "combine_logs", "merge_logs"],
        "the workers of an app write to one pair of files anyway: `log = { out = \"…\", err = \"…\" }`",
    ),
    (
        &["log_date_format", "time"],
        "write `log = { timestamps = true }`",
    ),
    (&["log_type"], "write `log = { format = \"json\" }`"),
    (
        &["restart_delay", "exp_backoff_restart_delay"],
        "write `restart = { backoff = \"100ms\" }`",
    ),
    (&["name"], "the name is in the header: `[app.NAME]`"),
    (
        &[
            "cluster",
            "numprocs",
            "numReplicas",
            "replicas",
            "workers",
            "processes",
        ],
        "rsup calls it `instances`",
    ),
    (
        &[
            "directory",
            "workdir",
            "working_directory",
            "WorkingDirectory",
            "chdir",
            "dir",
        ],
        "rsup calls it `cwd`",
    ),
    (&["environment", "env_vars", "vars"], "rsup calls it `env`"),
    (
        &[
            "env_production",
            "env_staging",
            "env_development",
            "env_test",
        ],
        "rsup has one `env` for each app; put it there, or into a file named by `env_file`",
    ),
    (&["EnvironmentFile", "dotenv"], "rsup calls it `env_file`"),
    (
        &[
            "healthcheck",
            "health",
            "health_check",
            "healthcheckPath",
            "readinessProbe",
            "ready",
        ],
        "rsup calls it `readiness`",
    ),
    (&["livenessProbe"], "rsup calls it `liveness`"),
    (
        &[
            "graceful_timeout",
            "stop_timeout",
            "TimeoutStopSec",
            "drainingSeconds",
            "stopwaitsecs",
        ],
        "rsup calls it `kill_timeout`",
    ),
    (
        &["startup_timeout", "ready_timeout", "healthcheckTimeout"],
        "rsup calls it `listen_timeout`",
    ),
    (
        &["treekill"],
        "leave it out: the whole process group of a worker is stopped",
    ),
    (
        &[
            "pmx",
            "vizion",
            "trace",
            "deep_monitoring",
            "source_map_support",
            "automation",
            "instance_var",
            "increment_var",
        ],
        "leave it out: rsup has no such feature",
    ),
    // Keys of probes.
    (&["http", "url", "uri", "http_path"], "rsup calls it `path`"),
    (
        &["initialDelaySeconds", "start_period"],
        "rsup calls it `initial_delay`",
    ),
    (&["periodSeconds", "period"], "rsup calls it `interval`"),
    (&["timeoutSeconds"], "rsup calls it `timeout`"),
    (
        &["failureThreshold", "retries"],
        "rsup calls it `failure_threshold`",
    ),
    (&["successThreshold"], "rsup calls it `success_threshold`"),
    (
        &["status", "expected_status"],
        "rsup calls it `expect_status`",
    ),
    // Keys of the top level.
    (
        &["apps", "services", "service", "program", "process"],
        "each app is a table of its own: `[app.NAME]`",
    ),
    (
        &["daemon", "rsup", "global", "settings"],
        "what belongs to the daemon is in `[supervisor]`",
    ),
];

/// The hint for a key that the section does not have.
pub(super) fn unknown_key(
    entry: &Entry,
    section: &'static Section,
    app: Option<&str>,
) -> Option<String> {
    let key = entry.key.as_str();
    let at_root = std::ptr::eq(section, &keys::ROOT);
    let header = |home: &Section| home.header.replace("NAME", app.unwrap_or("NAME"));

    if at_root && is_app_like(&entry.value.kind) {
        return Some(match nearest(key, &["app"]) {
            Some(_) => "did you mean `app`?".to_owned(),
            None => format!("an app is a table `[app.{key}]`"),
        });
    }
    // `intervall` is a typo; `interval` under another table is in the wrong place.
    if let Some(home) = keys::ALL.iter().find(|other| other.keys.contains(&key)) {
        return Some(format!("`{key}` belongs in {}", in_code(&header(home))));
    }
    let normal = key.replace('-', "_").to_lowercase();
    if let Some(same) = section.keys.iter().find(|known| **known == normal) {
        return Some(format!("did you mean `{same}`?"));
    }
    if let Some((_, hint)) = ELSEWHERE
        .iter()
        .find(|(names, _)| names.contains(&key) || names.contains(&normal.as_str()))
    {
        return Some((*hint).to_owned());
    }
    if let Some(near) = nearest(&normal, section.keys) {
        return Some(format!("did you mean `{near}`?"));
    }
    for home in keys::ALL {
        if let Some(near) = nearest(&normal, home.keys) {
            return Some(format!(
                "did you mean `{near}`, in {}?",
                in_code(&header(home))
            ));
        }
    }
    match entry.value.kind {
        Kind::Table(_) | Kind::Array(_) => None,
        _ => Some("keys that begin with `x-` are free for your own use".to_owned()),
    }
}

fn in_code(header: &str) -> String {
    if header.starts_with('[') {
        format!("`{header}`")
    } else {
        header.to_owned()
    }
}

/// Whether this is a table with a `command`, or a table of such tables: `app.` is missing or
/// misspelt.
fn is_app_like(kind: &Kind) -> bool {
    let Kind::Table(table) = kind else {
        return false;
    };
    let has_command = |kind: &Kind| matches!(kind, Kind::Table(t) if t.get("command").is_some() || t.get("script").is_some());
    has_command(kind)
        || table
            .entries
            .iter()
            .any(|entry| has_command(&entry.value.kind))
}

/// The known word that differs by a typo: in about a third of its letters at most.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), *candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len() / 3).clamp(1, 3) && *distance < word.chars().count()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The hint for a value that must be one of a few words.
pub(super) fn one_of(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => {
            let quoted: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
            format!("one of {}", quoted.join(", "))
        }
    }
}

/// Refuses what only a shell would expand, and characters that no path can hold.
pub(super) fn plain_path(value: &Value, path: &str) -> Result<(), Bad> {
    if path.is_empty() {
        return Err(value.bad("an empty path"));
    }
    if path.contains('\0') {
        return Err(value.bad("a path cannot contain a NUL"));
    }
    if path == "~" || path.starts_with("~/") {
        let bad = value.bad("`~` is not expanded: rsup may run as another user");
        return Err(match std::env::var("HOME") {
            Ok(home) => bad.hint(format!("write \"{home}{}\"", &path[1..])),
            Err(_) => bad.hint("write the whole path"),
        });
    }
    if path.starts_with('$') {
        return Err(value
            .bad("variables are not expanded")
            .hint("write the whole path"));
    }
    Ok(())
}
