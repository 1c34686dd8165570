//! The ways to tell that a worker is ready, and what becomes of one that never is.

use std::time::Duration;

use crate::common::apps::{node, python, toml_command};
use crate::common::http::{get, local};
use crate::common::{Home, wait_until};
use crate::support::Life;

/// Ready only for a request with the right host and header, and then with 204.
const PICKY: &str = "import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.headers['Host'] == 'example.org' and self.headers['X-Probe'] == 'rsup'
        print(self.path, self.headers['Host'], self.headers['X-Probe'], flush=True)
        self.send_response(204 if good else 200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Handler).serve_forever()
";

#[test]
fn http_with_host_headers_and_status() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write("app.py", PICKY);
    let port = home.port();
    let readiness = "readiness = { path = \"/up?x=1\", host = \"example.org\", headers = { X-Probe = \"rsup\" }, expect_status = 204 }";
    home.app(
        "web",
        &format!(
            "{}\nlisten = {port}\n{readiness}",
            toml_command(&[python, "app.py"])
        ),
    );
    home.ok(&["start"]);
    assert!(
        home.log("web-out").contains("/up?x=1 example.org rsup"),
        "{}",
        home.log("web-out")
    );
    home.ok(&["delete", "web"]);

    home.config("");
    let readiness = "readiness = { path = \"/up\", expect_status = [204, \"300-399\"] }\nlisten_timeout = \"1s\"";
    home.app(
        "web",
        &format!(
            "{}\nlisten = {port}\n{readiness}",
            toml_command(&[python, "app.py"])
        ),
    );
    home.run(&["start"])
        .code(1)
        .says(&["listen_timeout 1 s", "answered 200"]);
    home.ok(&["delete", "web"]);
}

#[test]
fn tcp_of_an_app_that_listens_late() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write(
        "app.py",
        "import os, socket, time
while not os.path.exists('go'): time.sleep(0.02)
s = socket.socket()
s.bind(('0.0.0.0', int(os.environ['PORT'])))
s.listen()
while True:
    c, _ = s.accept()
    c.close()
",
    );
    let port = home.port();
    home.app(
        "web",
        &format!(
            "{}\nlisten = \"0.0.0.0:{port}\"\nreadiness = {{ tcp = true, interval = \"50ms\" }}\nlisten_timeout = \"60s\"",
            toml_command(&[python, "app.py"])
        ),
    );
    let start = home.background(&["start"]);
    home.wait_view("web", "it is probed", |v| {
        v["workers"][0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("does not accept"))
    });
    assert!(start.ended().is_none());
    assert_eq!(home.workers("web")[0]["phase"], "starting");
    home.write("go", "");
    start.wait().ok();
    assert_eq!(home.workers("web")[0]["phase"], "ready");
}

#[test]
fn exec() {
    let home = Home::new();
    home.write("app", "echo $$ > pid\nexec sleep 1000\n");
    let readiness = "readiness = { exec = [\"sh\", \"-c\", \"test -e go && test \\\"$RSUP_PID\\\" = \\\"$(cat pid)\\\" && test \\\"$COLOR\\\" = red\"], interval = \"50ms\" }";
    home.app("job", &format!("command = [\"sh\", \"app\"]\nenv = {{ COLOR = \"red\" }}\n{readiness}\nlisten_timeout = \"60s\""));
    let start = home.background(&["start"]);
    home.wait_view("job", "it is probed", |v| {
        v["workers"][0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("exited with code 1"))
    });
    assert!(start.ended().is_none());
    home.write("go", "");
    start.wait().ok();
}

#[test]
fn what_a_command_says_last_is_part_of_the_reason() {
    let home = Home::new();
    home.write("app", "exec sleep 1000\n");
    home.write(
        "check",
        "echo looking; echo 'the database refuses: no route' >&2; echo; exit 7\n",
    );
    let readiness = "readiness = { exec = [\"sh\", \"check\"], interval = \"10ms\" }\nlisten_timeout = \"700ms\"";
    home.app("job", &format!("command = [\"sh\", \"app\"]\n{readiness}"));
    home.run(&["start"])
        .code(1)
        .says(&["`sh` exited with code 7: the database refuses: no route"]);
}

#[test]
fn exec_that_hangs_is_ended_by_its_timeout() {
    let home = Home::new();
    home.write("app", "exec sleep 1000\n");
    home.write("check", "echo $$ >> checks\nsleep 1000\n");
    let readiness = "readiness = { exec = [\"sh\", \"check\"], timeout = \"100ms\", interval = \"10ms\" }\nlisten_timeout = \"700ms\"";
    home.app("job", &format!("command = [\"sh\", \"app\"]\n{readiness}"));
    home.run(&["start"])
        .code(1)
        .says(&["took longer than 100 ms"]);
    home.ok(&["delete", "job"]);
    let checks = || std::fs::read_to_string(home.path("checks")).unwrap();
    wait_until("no check is left", || {
        checks()
            .lines()
            .all(|pid| !crate::common::is_alive(pid.parse().unwrap()))
    });
}

#[test]
fn sd_notify() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write(
        "app.py",
        "import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ['NOTIFY_SOCKET'])
s.send(b'STATUS=warming up')
print('up', flush=True)
while not os.path.exists('go'): time.sleep(0.02)
s.send(b'STATUS=well\\nREADY=1\\n')
time.sleep(1000)
",
    );
    home.app(
        "job",
        &format!(
            "{}\nreadiness = {{ notify = true }}\nlisten_timeout = \"60s\"",
            toml_command(&[python, "app.py"])
        ),
    );
    let start = home.background(&["start"]);
    home.wait_log("job", "up");
    assert!(start.ended().is_none());
    assert_eq!(home.workers("job")[0]["phase"], "starting");
    home.write("go", "");
    start.wait().ok();
    home.ok(&["stop", "job"]);
    let left: Vec<_> = std::fs::read_dir(home.rsup_home().join("run"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .filter(|n| n.to_string_lossy().starts_with("notify"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn node_says_ready() {
    let Some(node) = node() else { return };
    let home = Home::new();
    home.write(
        "server.js",
        "const http = require('http'), fs = require('fs');
console.log('connected', process.connected);
const server = http.createServer((q, a) => a.end(JSON.stringify({ pid: process.pid })));
server.listen(process.env.PORT, () => {
  const timer = setInterval(() => { if (fs.existsSync('go')) { clearInterval(timer); process.send('ready'); } }, 20);
});
process.on('SIGTERM', () => server.close(() => process.exit(0)));
",
    );
    let port = home.port();
    home.app(
        "web",
        &format!(
            "{}\nlisten = {port}\nreadiness = {{ notify = true }}\nlisten_timeout = \"60s\"\nkill_timeout = \"50s\"",
            toml_command(&[node, "server.js"])
        ),
    );
    let start = home.background(&["start"]);
    home.wait_log("web", "connected true");
    assert!(start.ended().is_none());
    assert_eq!(home.workers("web")[0]["phase"], "starting");
    home.write("go", "");
    start.wait().ok();
    let old = home.pid("web");
    assert_eq!(get(local(port), "/").unwrap().pid(), old);
    home.ok(&["reload", "web"]);
    assert_ne!(get(local(port), "/").unwrap().pid(), old);
}

#[test]
fn thresholds_and_delays() {
    let home = Home::new();
    home.write("app", "exec sleep 1000\n");
    home.write("check", "echo try >> tries\n");
    let readiness = "readiness = { exec = [\"sh\", \"check\"], success_threshold = 3, interval = \"100ms\", initial_delay = \"500ms\" }";
    home.app("job", &format!("command = [\"sh\", \"app\"]\n{readiness}"));
    let run = home.ok(&["start"]);
    assert_eq!(
        std::fs::read_to_string(home.path("tries"))
            .unwrap()
            .lines()
            .count(),
        3
    );
    assert!(run.took >= Duration::from_millis(700), "{run:?}");
}

#[test]
fn a_probe_that_is_not_answered_times_out() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write(
        "app.py",
        "import os, socket, time
s = socket.socket()
s.bind(('0.0.0.0', int(os.environ['PORT'])))
s.listen()
kept = []
while True: kept.append(s.accept())
",
    );
    let readiness = "readiness = { path = \"/\", timeout = \"150ms\", interval = \"50ms\" }\nlisten_timeout = \"1s\"";
    home.app(
        "web",
        &format!(
            "{}\nlisten = {}\n{readiness}",
            toml_command(&[python, "app.py"]),
            home.port()
        ),
    );
    home.run(&["start"])
        .code(1)
        .says(&["no answer within 150 ms"]);
    home.ok(&["delete", "web"]);
}

#[test]
fn a_first_start_that_is_never_ready_fails_and_goes_on_trying() {
    let home = Home::new();
    let port = home.web(
        "web",
        "listen_timeout = \"500ms\"\nenv = { NEVER_READY = \"1\" }",
    );
    home.run(&["start"]).code(1).says(&[
        "was not ready within listen_timeout 500 ms",
        "503",
        &format!("listening on 0.0.0.0:{port}"),
    ]);
    home.wait_view("web", "further tries", |v| {
        v["workers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|w| w["restarts"].as_u64().unwrap() >= 2)
    });
    let view = home.view("web");
    assert!(
        view["reason"]
            .as_str()
            .unwrap()
            .contains("listen_timeout 500 ms"),
        "{view:#}"
    );
    home.ok(&["delete", "web"]);
    assert_eq!(home.list().as_array().unwrap().len(), 0);
    assert!(get(local(port), "/").is_err());
}

#[test]
fn a_crash_at_the_start_is_told_with_its_last_words() {
    let home = Home::new();
    home.web("web", "env = { CRASH_AT_START = \"1\" }");
    home.run(&["start"])
        .code(1)
        .says(&["exited with code 3", "cannot connect to the database"]);
    home.ok(&["delete", "web"]);
    let json = home.run(&["start", "--json"]).code(1);
    let failure = &json.json()[0]["failure"];
    assert_eq!(failure["code"], "not_ready");
    assert!(
        failure["log"]
            .as_array()
            .unwrap()
            .iter()
            .any(|l| l.as_str().unwrap().contains("database")),
        "{failure:#}"
    );
    home.ok(&["delete", "web"]);
}

/// Workers are ready, and clients answered, while others still wait for their fork.
#[test]
fn a_big_start_leaves_time_for_what_runs_already() {
    const APPS: usize = 500;
    let home = Home::new();
    let app =
        |n| format!("[app.a{n}]\ncommand = [\"sleep\", \"1000\"]\nrestart.min_uptime = \"1ms\"\n");
    home.config(&(0..APPS).map(app).collect::<String>());
    home.ok(&["start", "--no-wait"]);
    let of = |list: &serde_json::Value, phase: &str| {
        let apps = list.as_array().unwrap();
        apps.iter().filter(|app| app["phase"] == phase).count()
    };
    let mut list = home.list();
    wait_until("the first worker is ready", || {
        list = home.list();
        of(&list, "ready") > 0
    });
    let (ready, starting) = (of(&list, "ready"), of(&list, "starting"));
    assert!(starting > 0, "{ready} were ready at once");
    wait_until("all are ready", || of(&home.list(), "ready") == APPS);
}
