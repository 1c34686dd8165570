//! What a user sees after a mistake.

use insta::assert_snapshot;

use super::*;

#[test]
fn many_mistakes_at_once() {
    assert_snapshot!(errors(
        r#"[app.api]
command = ["node", "server.js"]
instnces = 2
listen = "example.com:3001"
kill_timeout = "30 secnds"
max_memory = 500
min_uptime = "2s"

[app.api.stop]
signal = "SIGKILL"

[app.web]
script = "web.js"
"#
    ));
}

#[test]
fn other_supervisors_spellings() {
    assert_snapshot!(errors(
        r#"[app.api]
script = "server.js"
args = "--port 3000"
exec_mode = "cluster"
max_memory_restart = "300M"
wait_ready = true
autorestart = false
watch = true
cron_restart = "0 0 * * *"
out_file = "out.log"
name = "api"
"#
    ));
}

#[test]
fn unknown_keys() {
    assert_snapshot!(errors(
        r#"colour = 1
log_dir = "/tmp"
[supervisr]
log_dir = "/tmp"
[app.api]
command = "a"
liveliness = "/live"
kill-timeout = "3s"
Instances = 2
max_surge = 2
canary = { steps = [] }
[app.api.readiness]
exec = ["true"]
intervall = "1s"
policy = "always"
[web]
command = "b"
"#
    ));
}

#[test]
fn addresses() {
    assert_snapshot!(app_errors(
        r#"listen = [
  0, 70000, "3001x", "::1", "::1:3001", "http://0.0.0.0:80/x", "/run/a.sock", "unix:", "0.0.0.0", "[fe80::1%eth0]:80",
  "1.2.3.400:80", "[::ffff:1.2.3.4]:80", "", true, "api.internal:3001", ":", "unix:@abstract", "host:0",
]
"#
    ));
}

#[test]
fn overlapping_addresses() {
    assert_snapshot!(errors(
        r#"[app.a]
command = "a"
listen = [3001, "127.0.0.1:3001", "0.0.0.0:3002", "0.0.0.0:3002", "unix:/run/a.sock"]
[app.b]
command = "b"
listen = ["[::]:3002", "unix:/run/./a.sock", "localhost:3003", "[::]:3003"]
"#
    ));
}

#[test]
fn probes() {
    assert_snapshot!(errors(
        r#"[app.a]
command = "a"
listen = 3001
readiness = "ready"
liveness = { notify = true }
[app.b]
command = "b"
listen = 3002
readiness = { path = "/a", tcp = true }
liveness = { interval = "1s" }
[app.c]
command = "c"
readiness = "/ready"
liveness = { tcp = true }
[app.d]
command = "d"
listen = "unix:/run/d.sock"
readiness = "/ready"
[app.e]
command = "e"
listen = 3003
readiness = "http://localhost:3003/ready"
liveness = { exec = "check", expect_status = 200, host = "x" }
[app.f]
command = "f"
listen = 3004
readiness = { path = "/a b", expect_status = "200-99", success_threshold = 0, interval = 0, headers = { "a b" = "1", Host = "x" } }
liveness = 5
[app.g]
command = "g"
listen = 3005
readiness = { tcp = true, initial_delay = "20s" }
[app.h]
command = "h"
restart.min_uptime = "15s"
"#
    ));
}

#[test]
fn commands() {
    assert_snapshot!(errors(
        r#"[app.a]
command = "npm run migrate && npm start"
[app.b]
command = "NODE_ENV=production node x.js"
[app.c]
command = ["node server.js"]
[app.d]
command = []
[app.e]
command = "say 'hello"
[app.f]
instances = 1
[app.g]
command = ["node", ["x"]]
[app.h]
command = 5
"#
    ));
}

#[test]
fn a_tilde_is_not_expanded() {
    for text in [
        "[app.a]\ncommand = '~/bin/app'",
        "[app.a]\ncommand = 'a'\ncwd = '~'",
        "[app.a]\ncommand = 'a'\nenv_file = '~/.env'",
    ] {
        assert!(errors(text).contains("`~` is not expanded"), "{text}");
    }
}

#[test]
fn absurd_depth_is_refused() {
    let deep = 100_000;
    let dotted = format!("{}a = 1\n", "a.".repeat(deep));
    let header = format!("[{}a]\n", "a.".repeat(deep));
    let lists = format!("a = {}{}\n", "[".repeat(deep), "]".repeat(deep));
    let tables = format!("a = {}1{}\n", "{ a = ".repeat(deep), "}".repeat(deep));
    for text in [dotted, header, lists, tables] {
        assert!(parse_on(MACHINE, &text, Path::new("/supervisor.toml")).is_err());
    }
}

#[test]
fn values() {
    assert_snapshot!(app_errors(
        r#"instances = 0
listen_timeout = 0
drain_timeout = -1
kill_timeout = 1.5
max_memory = "50%"
balance = "sticky"
cwd = "nope/nope"
env = { "1A" = "x", RSUP_SLOT = "1", LISTEN_FDS = "3", "A B" = "x", LIST = [1] }
env_file = "nope.env"
stop = { signal = "SIGFOO", exit_codes = [256, "a"] }
restart = { policy = "on_failure", max_restarts = -1, backoff = "1m", backoff_max = "10s", min_uptime = "10M" }
reload = { max_surge = 0, deadline = "1s", min_ready = "2s", auto_rollback = "yes" }
log = { format = "xml", max_size = 5, keep = "many", timestamps = "true" }
"#
    ));
}

#[test]
fn tables_of_the_wrong_kind() {
    assert_snapshot!(errors(
        "supervisor = 1\n[app.a]\ncommand = 'a'\nstop = 'SIGINT'\nenv = 'A=b'\nlog = []\n[app]\nport = 3\n"
    ));
    assert_snapshot!(errors("[app]\ncommand = 'a'\nlisten = 3000\n"));
    assert_snapshot!(errors("[[app]]\ncommand = 'a'\n"));
    assert_snapshot!(errors("[apps.api]\ncommand = 'a'\n"));
    assert_snapshot!(errors("app = 3\n"));
}

#[test]
fn names_of_apps() {
    assert_snapshot!(errors(
        "[app.all]\ncommand = 'a'\n[app.\"a b\"]\ncommand = 'a'\n[app.-x]\ncommand = 'a'\n"
    ));
}

#[test]
fn syntax() {
    assert_snapshot!(errors("[app.api\ncommand = \"a\"\n"));
    assert_snapshot!(errors(
        "[app.api]\ncommand = node server.js\nlisten = 3001\n"
    ));
    assert_snapshot!(errors("[app.api]\ncommand = \"a\nlisten = 3001\n"));
    assert_snapshot!(errors("[app.a]\ncommand = 'a'\ncommand = 'b'\n[app.a]\n"));
    assert_snapshot!(errors("[app.a]\ninstances: 2\n"));
    assert_snapshot!(errors("[app.a]\ninstances = 99999999999999999999\n"));
    assert_snapshot!(errors("{ \"apps\": [] }"));
}

#[test]
fn nothing_in_it() {
    assert_snapshot!(errors(""));
    assert_snapshot!(errors("# only a comment\n[supervisor]\n"));
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let shown = |name: &str| match load(&folder.path().join(name)) {
        Ok(_) => panic!("{name} was loaded"),
        Err(errors) => errors
            .render(false)
            .replace(&folder.path().display().to_string(), "FOLDER"),
    };
    std::fs::write(
        folder.path().join("latin1.toml"),
        b"# a\n[app.a]\ncommand = 'caf\xe9'\n",
    )
    .expect("written");
    assert_snapshot!(shown("missing.toml"));
    assert_snapshot!(shown(""));
    assert_snapshot!(shown("latin1.toml"));
}

#[test]
fn mistakes_in_an_env_file() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(
        folder.path().join(".env"),
        "A=1\nnonsense\nLISTEN_PID=3\nB='x\n",
    )
    .expect("written");
    let path = folder.path().join("supervisor.toml");
    std::fs::write(
        &path,
        "[app.a]\ncommand = 'a'\nenv_file = '.env'\nfoo = 1\n",
    )
    .expect("written");
    let errors = load(&path).expect_err("mistakes");
    assert_snapshot!(
        errors
            .render(false)
            .replace(&folder.path().display().to_string(), "FOLDER")
    );
}

#[test]
fn as_data_and_as_lines() {
    let errors = parse_on(
        MACHINE,
        "[app.\"ä\"]\n\n[app.b]\nx = 1\ncommand = 'b'\nkill_timeout = 0\n",
        Path::new("/supervisor.toml"),
    )
    .expect_err("mistakes");
    assert_eq!(errors.len(), 3);
    assert_snapshot!(serde_json::to_string_pretty(&errors.findings()).expect("plain data"));
    assert_snapshot!(errors);
    assert!(errors.render(true).contains("\u{1b}["));
    assert!(!errors.render(false).contains("\u{1b}["));
}

#[test]
fn command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("main.ts"), "").expect("written");
    std::fs::write(folder.path().join("data.bin"), "").expect("written");
    let shown = |script: Script| {
        let script = Script {
            cwd: folder.path().to_owned(),
            ..script
        };
        match script::from_script_on(MACHINE, &script) {
            Ok(spec) => panic!("accepted: {spec:#?}"),
            Err(errors) => errors
                .render(false)
                .replace(&folder.path().display().to_string(), "FOLDER"),
        }
    };
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    assert_snapshot!(shown(Script {
        name: Some("all".into()),
        command: words(&["server.js", "--flag", "two words"]),
        instances: Some("many".into()),
        listen: words(&["3001", "example.com:80"]),
        env: words(&["NODE_ENV", "RSUP_X=1"]),
        readiness: Some("ready".into()),
        max_memory: Some("12Q".into()),
        kill_timeout: Some("soon".into()),
        stop_signal: Some("KILL".into()),
        ..Script::default()
    }));
    assert_snapshot!(shown(Script {
        command: words(&["main.ts"]),
        ..Script::default()
    }));
    assert_snapshot!(shown(Script {
        command: words(&["./data.bin"]),
        ..Script::default()
    }));
    assert_snapshot!(shown(Script::default()));
}

#[test]
fn socket_files() {
    let of = |socket: &str| {
        app_errors(&format!(
            "listen = \"unix:/run/a.sock\"\nsocket = {socket}\n"
        ))
    };
    assert_snapshot!(of(
        "{ mode = 660, owner = \"nobody-of-this-name\", grupo = \"x\" }"
    ));
    assert_snapshot!(of("{ mode = \"0444\" }"));
    assert_snapshot!(of("{ mode = \"1777\", owner = \"www-data:www-data\" }"));
    assert_snapshot!(of("\"0660\""));
}

#[test]
fn admin_addresses() {
    let of = |admin: &str| {
        errors(&format!(
            "[app.a]\ncommand = \"a\"\nlisten = 3001\n[supervisor]\n{admin}\n"
        ))
    };
    assert_snapshot!(of("admin = \"0.0.0.0:9700\""));
    assert_snapshot!(of(
        "admin = \"unix:/run/admin.sock\"\nadmin_public = \"yes\""
    ));
    assert_snapshot!(of("admin = \"127.0.0.1:3001\""));
}

#[test]
fn users_and_limits() {
    assert_snapshot!(app_errors(
        r#"user = "nobodi"
group = "no-such-group-here"
groups = "video"
umask = 27
max_memory = "1G"
[app.api.limits]
nofile = 3
nice = 20
no_new_privs = "yes"
capabilities = ["CAP_NET_BIND_SERVIC", "all", 1]
memory = "100K"
cpu = "150%"
tasks = 0
pids = 3
"#
    ));
    assert_snapshot!(app_errors(
        "user = 'www-data:www-data'\numask = '777'\nlimits = { cpu = 0, memory = -1 }\nuid = 3\nCPUQuota = 1"
    ));
    assert_snapshot!(app_errors(
        "user = 4242424\nlimits = { capabilities = 'none', cpu = nan }"
    ));
}

#[test]
fn secrets_beside_a_mistake_are_not_shown() {
    for text in [
        "env = { API_KEY = 'hunter2', 'BAD NAME' = 'hunter2' }",
        "env = { API_KEY = ['hunter2'] }",
        "[app.api.env]\nRSUP_X = 'hunter2'",
    ] {
        let shown = app_errors(text);
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
