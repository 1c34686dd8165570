//! Sandboxes that refuse one system call or another: rsup works all the same, or says at once, first and
//! once, what is refused. And machines that are smaller than others: no folder to write to, no room for
//! another process, no memory, no IPv6, a terminal without a size.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod machine;
mod refuse;

use std::process::Command;

use common::{Home, Run, apps, try_run};
use nix::errno::Errno;
use refuse::Call;

/// A sandbox with a daemon of its own.
struct Sandbox {
    home: Home,
    refused: Option<(Call, Errno)>,
    port: u16,
}

impl Sandbox {
    /// With an app `web` of so many workers; none where there is no python.
    fn new(refused: Option<(Call, Errno)>, keys: &str) -> Option<Self> {
        let python = apps::python()?;
        let home = Home::new();
        let port = home.port();
        let script = apps::sources().join("tiny.py");
        let command = apps::toml_command(&[python, "-S", "-E", script.to_str().expect("UTF-8")]);
        home.config(&format!(
            "[app.web]\n{command}\n{}\n",
            keys.replace("PORT", &port.to_string())
        ));
        Some(Self {
            home,
            refused,
            port,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.rsup();
        command.args(args);
        if let Some((call, errno)) = self.refused {
            call.refuse(errno, &mut command);
        }
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Run {
        try_run(self.command(args)).unwrap_or_else(|why| panic!("{why}"))
    }
}
