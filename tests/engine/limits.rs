//! The memory limit of the container.

use crate::container::{Container, PORT, folder, put};
use crate::engine::engine;
use crate::life::stops_well;

#[test]
fn a_worker_that_eats_the_containers_memory() {
    let Some(engine) = engine() else { return };
    let folder = folder(&engine);
    put(
        &folder,
        "supervisor.toml",
        "[app.api]\ncommand = [\"rsup\", \"sample-app\"]\ninstances = 2\nlisten = \"0.0.0.0:3001\"\nreadiness = \"/readiness\"\n",
    );
    let mount = format!(
        "{}/supervisor.toml:/app/supervisor.toml:ro",
        folder.display()
    );
    let container = Container::run(
        &engine,
        &[
            "--memory",
            "96m",
            "--memory-swap",
            "96m",
            "--volume",
            &mount,
        ],
    );
    container.wait_ready("api");
    let before = container.pids("api");
    // The answer never comes: whoever asks is cut off.
    let _ = container
        .inside(|| crate::common::http::get(crate::common::http::local(PORT), "/leak?mb=200"));
    let view = container.wait_view("api", "a successor", |view| {
        let now = crate::common::pids(view);
        crate::common::is_ready(view) && now != before
    });
    assert_eq!(
        crate::common::pids(&view).intersection(&before).count(),
        1,
        "one was killed: {before:?} {view}"
    );
    let describe = container.rsup(&["describe", "api"]).out;
    assert!(
        describe.contains("memory") && describe.contains("container"),
        "{describe}\n{}",
        container.log()
    );
    assert_eq!(container.get("/").status, 200);
    stops_well(&container);
}
