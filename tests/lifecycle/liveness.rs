//! A worker that hangs is replaced; one that is not ready for a while gets no traffic.

use std::collections::BTreeSet;
use std::fs;

use crate::common::apps::{python, toml_command};
use crate::common::http::{get, local};
use crate::common::load::Load;
use crate::common::{Home, is_alive, pids, wait_until};
use crate::support::Life;

#[test]
fn a_wedged_worker_is_replaced_after_enough_failures() {
    let home = Home::new();
    let liveness =
        "liveness = { path = \"/liveness\", interval = \"100ms\", failure_threshold = 3 }";
    let port = home.web("web", &format!("{liveness}\nenv = {{ WARM_MS = \"500\" }}"));
    home.ok(&["start"]);
    let old = home.pid("web");
    let load = Load::start(port, "/");
    assert_eq!(get(local(port), "/wedge").unwrap().pid(), old);
    home.wait_view("web", "a replacement beside it", |v| {
        let found = pids(v);
        found.len() == 2 && found.contains(&old)
    });
    let view = home.wait_view("web", "the replacement alone", |v| {
        v["phase"] == "ready" && !pids(v).contains(&old) && pids(v).len() == 1
    });
    load.more(200);
    load.lossless();
    assert!(!is_alive(old));
    let reason = view["workers"][0]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        reason.contains("liveness") && reason.contains("503"),
        "{view:#}"
    );
    assert!(home.ok(&["list"]).out.contains("liveness"));
    assert!(
        home.ok(&["describe", "web"])
            .out
            .contains("liveness failed")
    );
    let events = home.events("web");
    assert_eq!(
        events.matches("is replaced: liveness failed").count(),
        1,
        "{events}"
    );
}

#[test]
fn liveness_by_a_command() {
    let home = Home::new();
    home.write("app", "echo up\nexec sleep 1000\n");
    let liveness = "liveness = { exec = [\"sh\", \"-c\", \"test ! -e sick\"], interval = \"50ms\", failure_threshold = 2 }";
    home.app(
        "job",
        &format!("command = [\"sh\", \"app\"]\nrestart.min_uptime = \"50ms\"\n{liveness}"),
    );
    home.ok(&["start"]);
    let old = home.pid("job");
    home.write("sick", "");
    home.wait_view("job", "another worker", |v| {
        !pids(v).contains(&old) && !pids(v).is_empty()
    });
    fs::remove_file(home.path("sick")).unwrap();
    let events = home.events("job");
    assert!(
        events.contains("0 is replaced: liveness failed: `sh` exited with code 1"),
        "{events}"
    );
    home.wait_view("job", "rest", |v| v["phase"] == "ready");
}

/// Answers its pid; not ready while the file `unready.INSTANCE` is there.
const SWITCH: &str = "import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        off = self.path == '/readiness' and os.path.exists('unready.' + os.environ['RSUP_INSTANCE'])
        body = ('{\"pid\":%d}' % os.getpid()).encode()
        self.send_response(503 if off else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Handler).serve_forever()
";

fn phases(home: &Home) -> Vec<String> {
    home.workers("web")
        .iter()
        .map(|w| w["phase"].as_str().unwrap().to_owned())
        .collect()
}

/// Who answers, over many connections.
fn answering(port: u16) -> BTreeSet<u32> {
    (0..60)
        .map(|_| get(local(port), "/").unwrap().pid())
        .collect()
}

#[test]
fn a_worker_that_is_not_ready_any_more_gets_no_traffic() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write("app.py", SWITCH);
    let port = home.port();
    let readiness = "readiness = { path = \"/readiness\", interval = \"100ms\", failure_threshold = 2, success_threshold = 2 }";
    home.app(
        "web",
        &format!(
            "{}\nlisten = \"0.0.0.0:{port}\"\ninstances = 2\n{readiness}",
            toml_command(&[python, "app.py"])
        ),
    );
    home.ok(&["start"]);
    let both = home.pids("web");
    assert_eq!(answering(port), both);

    home.write("unready.1", "");
    wait_until("one worker is unready", || {
        phases(&home) == ["ready", "unready"]
    });
    let ready = home.workers("web")[0]["pid"].as_u64().unwrap() as u32;
    assert_eq!(answering(port), BTreeSet::from([ready]));
    let view = home.view("web");
    assert_eq!(view["phase"], "degraded");
    assert!(
        view["workers"][1]["reason"]
            .as_str()
            .unwrap()
            .contains("503"),
        "{view:#}"
    );
    let events = home.events("web");
    assert!(
        events.contains("is unready") && events.contains("503"),
        "{events}"
    );

    fs::remove_file(home.path("unready.1")).unwrap();
    wait_until("both are ready", || phases(&home) == ["ready", "ready"]);
    assert_eq!(answering(port), both);

    // A database that fails for all must not turn a slow app into a dead one.
    home.write("unready.0", "");
    home.write("unready.1", "");
    wait_until("both are unready", || {
        phases(&home) == ["unready", "unready"]
    });
    assert_eq!(answering(port), both);
    assert_eq!(home.pids("web"), both);
}

#[test]
fn a_sick_worker_stays_until_its_replacement_is_well() {
    let home = Home::new();
    home.write(
        "app",
        "[ -e sick ] && { echo no luck; exit 1; }\nexec sleep 1000\n",
    );
    let liveness = "liveness = { exec = [\"sh\", \"-c\", \"test ! -e sick\"], interval = \"50ms\", failure_threshold = 2 }";
    let restart = "restart = { min_uptime = \"50ms\", backoff = \"10ms\", backoff_max = \"10ms\" }";
    home.app(
        "job",
        &format!("command = [\"sh\", \"app\"]\n{restart}\n{liveness}"),
    );
    home.ok(&["start"]);
    let old = home.pid("job");
    home.write("sick", "");
    home.wait_log("job", "no luck");
    wait_until("some tries", || {
        home.log("job-out").matches("no luck").count() >= 5
    });
    assert!(is_alive(old));
    assert!(home.pids("job").contains(&old));
    fs::remove_file(home.path("sick")).unwrap();
    home.wait_view("job", "a well one alone", |v| {
        v["phase"] == "ready" && pids(v).len() == 1 && !pids(v).contains(&old)
    });
    assert!(!is_alive(old));
}
