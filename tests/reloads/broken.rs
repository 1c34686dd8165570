//! Releases that do not work: the old workers go on serving, nobody notices, and whoever asked for
//! the reload is told why.

use std::fs;

use crate::common::load::Load;
use crate::common::{Home, Run, apps, http, is_ready};

/// An app that runs well, under load.
struct Site {
    home: Home,
    port: u16,
    load: Load,
}

impl Site {
    fn start() -> Self {
        let home = Home::new();
        let port = home.port();
        home.config(&config(port, &apps::sample(), ""));
        home.ok(&["start"]);
        let load = Load::start(port, "/health");
        Self { home, port, load }
    }

    /// The release is this command with these lines of configuration. It fails, and nothing changes.
    #[track_caller]
    fn refuses(self, command: &str, lines: &str, words: &[&str]) -> Run {
        let before = self.home.view("web");
        self.home.config(&config(self.port, command, lines));
        let run = self.home.run(&["reload", "web"]).code(1).says(words);
        self.load.more(200);
        let after = self.home.wait_view("web", "the app as it was", is_ready);
        assert_eq!(
            pids_in_order(&before),
            pids_in_order(&after),
            "the old workers stay: {after:#}"
        );
        assert_eq!(before["revision"], after["revision"]);
        assert_eq!(
            http::get(http::local(self.port), "/health")
                .expect("an answer")
                .json()["version"],
            "v1"
        );
        let report = self.load.lossless();
        assert_eq!(
            report.before.versions.keys().collect::<Vec<_>>(),
            ["v1"],
            "no broken release has served"
        );
        run
    }
}

fn pids_in_order(view: &serde_json::Value) -> Vec<u64> {
    view["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .filter_map(|w| w["pid"].as_u64())
        .collect()
}

fn config(port: u16, command: &str, lines: &str) -> String {
    format!(
        "[app.web]\n{command}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\n{lines}\n"
    )
}

#[test]
fn never_ready() {
    let lines = "listen_timeout = \"700ms\"\nenv = { NEVER_READY = \"1\", APP_VERSION = \"v2\" }";
    let words = [
        "listen_timeout 700 ms",
        "/readiness answered 503",
        "v2 listening on",
    ];
    Site::start().refuses(&apps::sample(), lines, &words);
}

#[test]
fn crashes_at_start() {
    let words = [
        "exited with code 3",
        "before it was ready",
        "cannot connect to the database",
    ];
    Site::start().refuses(&apps::sample(), "env = { CRASH_AT_START = \"1\" }", &words);
}

#[test]
fn command_not_found() {
    Site::start().refuses(
        "command = [\"./no-such-program\", \"--flag\"]",
        "",
        &["no-such-program not found"],
    );
}

#[test]
fn not_executable() {
    let site = Site::start();
    site.home.write("server", "#!/bin/sh\n");
    site.refuses(
        "command = [\"./server\"]",
        "",
        &["server", "not executable"],
    );
}

#[test]
fn deadline_passed() {
    let lines = "env = { NEVER_READY = \"1\" }\n[app.web.reload]\ndeadline = \"3s\"";
    Site::start().refuses(&apps::sample(), lines, &["deadline 3 s", "listening on"]);
}

#[test]
fn readiness_answers_500() {
    let Some(python) = apps::python() else { return };
    let site = Site::start();
    let script = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked for", self.path, flush=True)
        self.send_error(500)
http.server.HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"#;
    site.home.write("broken.py", script);
    let command = apps::toml_command(&[python, "broken.py"]);
    site.refuses(
        &command,
        "listen_timeout = \"3s\"",
        &["/readiness answered 500", "asked for /readiness"],
    );
}

#[test]
fn binds_another_port() {
    let site = Site::start();
    let other = site.home.port();
    let lines = format!("listen_timeout = \"1s\"\nenv = {{ PORT = \"{other}\" }}");
    site.refuses(
        &apps::sample(),
        &lines,
        &[
            "listen_timeout 1 s",
            &format!("listening on 0.0.0.0:{other}"),
        ],
    );
}

#[test]
fn folder_gone() {
    let site = Site::start();
    let before = site.home.view("web");
    let release = site.home.path("release");
    fs::create_dir(&release).expect("a folder");
    fs::remove_dir(&release).expect("it is empty");
    site.home
        .config(&config(site.port, &apps::sample(), "cwd = \"release\""));
    // The client sees it already, while it reads the file.
    site.home.run(&["reload", "web"]).code(2).says(&["release"]);
    assert_eq!(site.home.pids("web"), crate::common::pids(&before));
    site.load.lossless();
}

/// Only the first replacement works: it goes again, for a worker of the old release.
#[test]
fn breaks_at_the_second_worker() {
    let site = Site::start();
    let before = site.home.pids("web");
    let rsup = crate::common::quoted(crate::common::RSUP);
    site.home.write(
        "release.sh",
        &format!(
            "if mkdir first; then exec {rsup} sample-app; fi\necho the second one fails; exit 7\n"
        ),
    );
    site.home.config(&config(
        site.port,
        "command = [\"sh\", \"release.sh\"]",
        "env = { APP_VERSION = \"v2\" }",
    ));
    site.home
        .run(&["reload", "web"])
        .code(1)
        .says(&["exited with code 7", "the second one fails"]);
    let view = site
        .home
        .wait_view("web", "two workers of the old release", is_ready);
    assert_eq!(view["revision"], 1);
    assert!(
        view["workers"]
            .as_array()
            .is_some_and(|w| w.iter().all(|w| w["revision"] == 1)),
        "{view:#}"
    );
    let after = site.home.pids("web");
    assert_eq!(
        after.intersection(&before).count(),
        1,
        "one was never touched: {before:?} {after:?}"
    );
    site.load.more(200);
    let report = site.load.lossless();
    assert!(
        report.before.versions.contains_key("v2"),
        "the first replacement has served: {:?}",
        report.before.versions
    );
    for _ in 0..20 {
        assert_eq!(
            http::get(http::local(site.port), "/health")
                .expect("an answer")
                .json()["version"],
            "v1"
        );
    }
}
