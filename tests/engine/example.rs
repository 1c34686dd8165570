//! The example as it stands.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{Home, wait_for};
use crate::container::{ADMIN, Container, PORT, folder, put};
use crate::engine::engine;
use crate::life::{live, live_at};

#[test]
fn the_example_as_it_stands() {
    let Some(engine) = engine() else { return };
    // The check of its health is the image's; only its rhythm is another.
    let container = Container::run(&engine, &["--init=false", "--health-interval", "1s"]);
    wait_for("the engine finds it healthy", || {
        match container.state()["Health"]["Status"].as_str() {
            Some("healthy") => Ok(()),
            other => Err(format!("{other:?}\n{}", container.log())),
        }
    });
    assert_eq!(container.get_at(ADMIN, "/readiness").status, 200);
    live(&container, 1000);
    let log = container.log();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
        assert!(
            event["level"] != "WARN" && event["level"] != "ERROR" || line.contains("signal 9"),
            "{line}"
        );
    }
    assert!(log.contains(&format!("listening on {PORT}")), "{log}");
}

/// `docker run --network host` shares ports with everything on the machine, so it has others than the example.
#[test]
fn in_the_network_of_the_host() {
    let Some(engine) = engine() else { return };
    let home = Home::new();
    let (port, admin) = (home.port(), home.port());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/docker/supervisor.toml");
    let text = fs::read_to_string(example).unwrap();
    let text = text
        .replace(&PORT.to_string(), &port.to_string())
        .replace(&ADMIN.to_string(), &admin.to_string());
    let folder = folder(&engine);
    put(&folder, "supervisor.toml", &text);
    let mount = format!(
        "{}/supervisor.toml:/app/supervisor.toml:ro",
        folder.display()
    );
    let container = Container::run_on_host(&engine, &["--volume", &mount]);
    live_at(&container, 1000, port);
}

/// What SIGHUP reads again is the file.
#[test]
fn hup_reads_the_file_again() {
    let Some(engine) = engine() else { return };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/docker");
    let folder = folder(&engine);
    for name in ["server.js", "supervisor.toml"] {
        put(
            &folder,
            name,
            &fs::read_to_string(example.join(name)).unwrap(),
        );
    }
    let container = Container::run(
        &engine,
        &["--volume", &format!("{}:/app:ro", folder.display())],
    );
    container.wait_ready("api");
    let load = container.load(PORT, "/");
    let text = fs::read_to_string(example.join("supervisor.toml")).unwrap();
    assert!(text.contains("instances = 2"));
    put(
        &folder,
        "supervisor.toml",
        &text.replace("instances = 2", "instances = 3"),
    );
    container.docker(&["kill", "--signal", "HUP"]);
    container.wait_view("api", "three workers", |view| {
        view["instances"] == 3 && crate::common::is_ready(view)
    });
    load.more(100);
    load.lossless();
    crate::life::stops_well(&container);
}
