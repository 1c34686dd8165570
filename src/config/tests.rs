//! Whole texts, right and wrong. For the wrong ones snapshots hold what a user sees.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::cursor::Machine;
use super::*;
use crate::sys::cgroup::Controllers;
use crate::sys::needs::V6;

mod rules;
mod wrong;

const ALL_CONTROLLERS: Controllers = Controllers {
    memory: true,
    cpu: true,
    tasks: true,
};
pub(super) const MACHINE: Machine = Machine {
    cores: 4,
    ipv6: V6::There,
    privileged: true,
    controllers: ALL_CONTROLLERS,
    capacity: super::capacity::Capacity {
        slots: 2000,
        slots_v6: 63,
        files: None,
        processes: None,
    },
};
const EXAMPLE: &str = include_str!("../../supervisor.toml.example");

fn loaded(text: &str) -> Loaded {
    match parse_on(MACHINE, text, Path::new("/supervisor.toml")) {
        Ok(loaded) => loaded,
        Err(errors) => panic!("{}", errors.render(false)),
    }
}

/// The only app of a text that has no `[app.NAME]` of its own.
fn app(keys: &str) -> AppSpec {
    loaded(&format!("[app.api]\ncommand = \"node x.js\"\n{keys}"))
        .config
        .apps
        .remove(0)
}

fn errors(text: &str) -> String {
    match parse_on(MACHINE, text, Path::new("/supervisor.toml")) {
        Ok(loaded) => panic!("accepted: {:#?}", loaded.config),
        Err(errors) => errors.render(false),
    }
}

fn app_errors(keys: &str) -> String {
    errors(&format!("[app.api]\ncommand = \"node x.js\"\n{keys}"))
}

fn warnings(keys: &str) -> Vec<String> {
    loaded(&format!("[app.api]\ncommand = \"node x.js\"\n{keys}"))
        .warnings
        .iter()
        .map(|w| w.message().to_owned())
        .collect()
}

#[test]
fn a_basic_app_gets_every_default() {
    let spec = app("");
    assert_eq!(spec.name.as_str(), "api");
    assert_eq!(spec.source.as_deref(), Some(Path::new("/supervisor.toml")));
    assert_eq!(spec.command, ["node", "x.js"]);
    assert_eq!(spec.cwd, Path::new("/"));
    assert_eq!(spec.cwd_resolved, Path::new("/"));
    assert_eq!(spec.instances, 1);
    assert_eq!(spec.listen, []);
    assert!(spec.env.is_empty());
    assert_eq!(spec.readiness.check, Check::Alive);
    assert_eq!(spec.liveness, None);
    assert_eq!(spec.listen_timeout, Duration::from_secs(10));
    assert_eq!(spec.drain_timeout, Duration::from_secs(5));
    assert_eq!(spec.hold_timeout, Duration::from_secs(60));
    assert_eq!(spec.kill_timeout, Duration::from_secs(30));
    assert_eq!(spec.max_memory, None);
    assert_eq!(spec.balance, Balance::Random);
    assert_eq!(
        spec.stop,
        Stop {
            signal: 15,
            exit_codes: BTreeSet::new()
        }
    );
    assert_eq!(
        spec.restart,
        Restart {
            policy: RestartPolicy::Always,
            max_restarts: 15,
            min_uptime: Duration::from_secs(1),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(15),
            reset_after: Duration::from_secs(30),
        }
    );
    assert_eq!(
        spec.reload,
        Reload {
            max_surge: Surge::Percent(25),
            min_ready: Duration::from_secs(1),
            deadline: Duration::from_secs(600),
            auto_rollback: true
        }
    );
    let log = Log {
        out: None,
        err: None,
        format: LogFormat::Text,
        timestamps: true,
        max_size: 50 << 20,
        keep: 10,
        compress: true,
    };
    assert_eq!(spec.log, log);
}

#[test]
fn the_example_loads_and_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("supervisor.toml.example");
    let loaded = parse_on(MACHINE, EXAMPLE, &path)
        .unwrap_or_else(|errors| panic!("{}", errors.render(false)));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let apps = &loaded.config.apps;
    assert_eq!(
        apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(),
        ["api", "web", "jail", "behind", "queue"]
    );
    let (web, plain) = (&apps[1], app("listen = 3002"));
    assert_eq!(
        (&web.stop, &web.restart, &web.reload, &web.log),
        (&plain.stop, &plain.restart, &plain.reload, &plain.log)
    );
    assert_eq!(
        web.readiness,
        app("listen = 3002\nreadiness = \"/ready\"").readiness
    );
    assert_eq!(
        web.liveness,
        app("listen = 3002\nliveness = { tcp = true }").liveness
    );
    assert_eq!(
        (
            apps[0].listen_timeout,
            apps[0].drain_timeout,
            apps[0].kill_timeout,
            apps[0].balance
        ),
        (
            plain.listen_timeout,
            plain.drain_timeout,
            plain.kill_timeout,
            plain.balance
        )
    );
}

#[test]
fn the_example_has_every_key() {
    for section in keys::ALL {
        for key in section.keys {
            let found = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                let named = |text: &str| {
                    text.strip_prefix(key)
                        .is_some_and(|rest| rest.trim_start().starts_with('='))
                };
                named(line)
                    || line.split("or ").any(named)
                    || line.starts_with(&format!("[{key}"))
                    || line.contains(&format!(".{key}]"))
            });
            assert!(
                found,
                "`{key}` of {} is not in supervisor.toml.example",
                section.header
            );
        }
    }
}

#[test]
fn the_commented_keys_of_the_example_are_right() {
    // Uncommented, every `# key = value` line must be accepted (files that it names need not exist).
    let text: String =
        EXAMPLE
            .lines()
            .map(|line| match line.trim_start().strip_prefix("# ") {
                Some(rest)
                    if rest.split('=').next().is_some_and(|key| {
                        keys::ALL.iter().any(|s| s.keys.contains(&key.trim()))
                    }) && !rest.contains(".env") =>
                {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
    assert!(text.contains("\nlog_dir = "), "{text}");
    assert_eq!(
        loaded(&text).config.supervisor.log_dir.as_deref(),
        Some(Path::new("/var/log/rsup"))
    );
}

#[test]
fn apps_keep_the_order_of_the_file() {
    let text = "[app.zeta]\ncommand = 'a'\n[app.alpha]\ncommand = 'b'\n[app.mid]\ncommand = 'c'\n[app.alpha.stop]\nsignal = 2\n";
    let config = loaded(text).config;
    assert_eq!(
        config
            .apps
            .iter()
            .map(|app| app.name.as_str())
            .collect::<Vec<_>>(),
        ["zeta", "alpha", "mid"]
    );
}

#[test]
fn keys_beginning_with_x_are_free() {
    loaded(
        "x-note = 1\n[x-table]\na = 1\n[supervisor]\nx-y = 1\n[app.a]\ncommand = 'a'\nx-team = 'b'\n[app.a.stop]\nx-z = 1\n[app.a.readiness]\nexec = ['a']\nx-q = 1\n",
    );
}

#[test]
fn a_checked_configuration_survives_its_own_json() {
    let config = loaded(EXAMPLE).config;
    let text = serde_json::to_string(&config).expect("plain data");
    assert_eq!(
        serde_json::from_str::<Config>(&text).expect("its own text"),
        config
    );
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    fn try_it(text: &str) {
        match parse_on(MACHINE, text, Path::new("/nowhere/supervisor.toml")) {
            Ok(loaded) => loaded
                .warnings
                .iter()
                .for_each(|warning| drop(warning.render(false))),
            Err(errors) => {
                assert!(errors.len() > 0);
                drop((errors.render(true), errors.to_string(), errors.findings()));
            }
        }
    }

    /// Replaces a stretch of the example, on character boundaries.
    fn mutate(at: usize, length: usize, with: &str) -> String {
        let chars: Vec<char> = EXAMPLE.chars().collect();
        let at = at % chars.len();
        let end = (at + length).min(chars.len());
        chars[..at]
            .iter()
            .copied()
            .chain(with.chars())
            .chain(chars[end..].iter().copied())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            try_it(&text);
        }

        #[test]
        fn never_panics_on_toml_like(text in r#"(\[app\.[a-z]{1,3}\]|\[+|\]|[a-z_]{1,9} = |"[^"]{0,6}"|[0-9:.%-]{1,5}|é|\{|\}|,|\r?\n| ){0,50}"#) {
            try_it(&text);
        }

        #[test]
        fn never_panics_on_a_mutated_example(at in any::<usize>(), length in 0usize..12, with in r#"(\PC{0,4}|\n|"|\[|-?[0-9]{1,20}|true|\{\}|\[\]|[0-9]{2}s)"#) {
            try_it(&mutate(at, length, &with));
        }

        #[test]
        fn never_panics_on_any_value(
            key in prop::sample::select(keys::ALL.iter().flat_map(|s| s.keys.iter().map(|k| (s.header, *k))).filter(|(h, _)| h.starts_with("[app")).collect::<Vec<_>>()),
            value in prop::sample::select(vec![
                "0", "-1", "9223372036854775807", "-9223372036854775808", "1.5", "nan", "inf", "true", "false", "''", "' '", "'é'", "'-'", "':'", "'[]:1'", "'[:'", "'%'",
                "'1-'", "'\\u0000'", "\"\\u0000\"", "[]", "[[]]", "[0]", "['']", "{}", "{ a = 1 }", "{ path = 1 }", "1979-05-27", "'/'", "'unix:'", "'://'", "'~'", "'99999999999s'", "'=x'",
            ]),
        ) {
            let header = key.0.replace("NAME", "a");
            let text = if header == "[app.a]" {
                format!("[app.a]\ncommand = 'x'\nlisten = 1\n{} = {value}\n", key.1)
            } else {
                format!("[app.a]\ncommand = 'x'\n{header}\n{} = {value}\n", key.1)
            };
            try_it(&text);
        }
    }
}
