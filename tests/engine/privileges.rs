//! As whom it runs, and with what.

use std::fs;
use std::path::Path;

use crate::container::{Container, folder, put};
use crate::engine::engine;
use crate::life::live;

#[test]
fn as_a_user_of_the_command_line() {
    let Some(engine) = engine() else { return };
    live(&Container::run(&engine, &["--user", "1000"]), 1000);
}

#[test]
fn as_root() {
    let Some(engine) = engine() else { return };
    live(&Container::run(&engine, &["--user", "0"]), 0);
}

#[test]
fn without_any_capability() {
    let Some(engine) = engine() else { return };
    live(&Container::run(&engine, &["--cap-drop", "ALL"]), 1000);
}

#[test]
fn without_any_capability_and_new_privileges() {
    let Some(engine) = engine() else { return };
    live(
        &Container::run(
            &engine,
            &["--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
        ),
        1000,
    );
}

#[test]
fn an_app_with_a_user_of_its_own() {
    let Some(engine) = engine() else { return };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/docker/supervisor.toml");
    let text = fs::read_to_string(example)
        .unwrap()
        .replace("instances = 2", "instances = 2\nuser = \"www-data\"");
    let folder = folder(&engine);
    put(&folder, "supervisor.toml", &text);
    let mount = format!(
        "{}/supervisor.toml:/app/supervisor.toml:ro",
        folder.display()
    );
    let container = Container::run(&engine, &["--user", "0", "--volume", &mount]);
    live(&container, 33);
}

#[test]
fn with_an_init_of_the_engine() {
    let Some(engine) = engine() else { return };
    live(&Container::run(&engine, &["--init"]), 1000);
}

#[test]
fn on_a_read_only_root() {
    let Some(engine) = engine() else { return };
    let options = [
        "--read-only",
        "--tmpfs",
        "/var/lib/rsup:uid=1000,mode=700",
        "--tmpfs",
        "/tmp",
    ];
    live(&Container::run(&engine, &options), 1000);
}
