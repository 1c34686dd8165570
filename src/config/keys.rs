//! Every key that a file may have, table by table.

/// A kind of table.
#[derive(Debug)]
pub(super) struct Section {
    /// Its header as a user writes it; `NAME` stands for the name of an app.
    pub header: &'static str,
    pub keys: &'static [&'static str],
}

pub(super) static ROOT: Section = Section {
    header: "the top level",
    keys: &["supervisor", "app"],
};

pub(super) static SUPERVISOR: Section = Section {
    header: "[supervisor]",
    keys: &["log_dir", "admin", "admin_public"],
};

pub(super) static APP: Section = Section {
    header: "[app.NAME]",
    keys: &[
        "command",
        "cwd",
        "instances",
        "listen",
        "socket_activation",
        "hide_port",
        "env",
        "env_file",
        "readiness",
        "liveness",
        "listen_timeout",
        "drain_timeout",
        "hold_timeout",
        "kill_timeout",
        "max_memory",
        "balance",
        "stop",
        "restart",
        "reload",
        "log",
        "user",
        "group",
        "groups",
        "umask",
        "limits",
        "socket",
    ],
};

const PROBE_KEYS: &[&str] = &[
    "path",
    "tcp",
    "exec",
    "notify",
    "interval",
    "timeout",
    "initial_delay",
    "success_threshold",
    "failure_threshold",
    "expect_status",
    "host",
    "headers",
];

pub(super) static READINESS: Section = Section {
    header: "[app.NAME.readiness]",
    keys: PROBE_KEYS,
};

pub(super) static LIVENESS: Section = Section {
    header: "[app.NAME.liveness]",
    keys: PROBE_KEYS,
};

pub(super) static STOP: Section = Section {
    header: "[app.NAME.stop]",
    keys: &["signal", "exit_codes"],
};

pub(super) static RESTART: Section = Section {
    header: "[app.NAME.restart]",
    keys: &[
        "policy",
        "max_restarts",
        "min_uptime",
        "backoff",
        "backoff_max",
        "reset_after",
    ],
};

pub(super) static RELOAD: Section = Section {
    header: "[app.NAME.reload]",
    keys: &["max_surge", "min_ready", "deadline", "auto_rollback"],
};

pub(super) static LOG: Section = Section {
    header: "[app.NAME.log]",
    keys: &[
        "out",
        "err",
        "format",
        "timestamps",
        "max_size",
        "keep",
        "compress",
    ],
};

pub(super) static LIMITS: Section = Section {
    header: "[app.NAME.limits]",
    keys: &[
        "nofile",
        "nice",
        "no_new_privs",
        "capabilities",
        "memory",
        "cpu",
        "tasks",
    ],
};

pub(super) static SOCKET: Section = Section {
    header: "[app.NAME.socket]",
    keys: &["mode", "owner", "group"],
};

/// All tables; a misplaced key is looked up in this order, the likeliest first.
pub(super) static ALL: &[&Section] = &[
    &APP,
    &RESTART,
    &READINESS,
    &STOP,
    &RELOAD,
    &LOG,
    &LIMITS,
    &SOCKET,
    &LIVENESS,
    &SUPERVISOR,
    &ROOT,
];
