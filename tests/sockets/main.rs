//! How apps come to their listening sockets, and connections to the apps.

#[path = "../common/mod.rs"]
mod common;

mod balance;
mod bound;
mod families;
mod files;
mod held_port;
mod inherit;
mod stragglers;

use common::{Home, apps};

/// Writes a configuration that runs tests/apps/sockets.py, and says whether there is a python to do so.
fn python_app(home: &Home, listen: &str, bind: &str, lines: &str) -> bool {
    let Some(python) = apps::python() else {
        return false;
    };
    let script = apps::sources().join("sockets.py");
    let command = apps::toml_command(&[python, script.to_str().expect("UTF-8")]);
    home.config(&format!(
        "[app.web]\n{command}\n{listen}\n{lines}\n[app.web.env]\nBIND = \"{bind}\"\n"
    ));
    true
}
