//! What the command line makes of files and of a real daemon.

use std::process::{Command, Stdio};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, text: &str) {
        std::fs::write(self.0.path().join("supervisor.toml"), text).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rsup"));
        command
            .args(line.split_whitespace())
            .env("RSUP_HOME", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Exit code, stdout, stderr.
    fn rsup(&self, line: &str) -> (i32, String, String) {
        let output = self.command(line).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap_or(-1),
            text(output.stdout),
            text(output.stderr),
        )
    }

    fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.rsup(&format!("{line} --json")).1).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.rsup("kill");
    }
}

const TWO: &str = "[app.a]\ncommand = \"sleep 1000\"\n[app.b]\ncommand = \"sleep 1000\"\n";

#[test]
fn a_reload_reads_the_file_again_or_changes_nothing() {
    let home = Home::new();
    home.write(TWO);
    let (code, out, err) = home.rsup("start");
    assert_eq!(code, 0, "{out}{err}");
    let pids = |home: &Home| home.json("list").pointer("/0/workers/0/pid").cloned();
    let before = pids(&home);

    home.write("[app.a]\ncomand = \"sleep 1000\"\n");
    let (code, _, err) = home.rsup("reload a");
    assert_eq!(code, 2);
    assert!(err.contains("comand"), "{err}");
    assert_eq!(home.json("reload a")["code"], "config");

    home.write("[app.b]\ncommand = \"sleep 1000\"\n");
    let (code, _, err) = home.rsup("reload all");
    assert_eq!(code, 2);
    assert!(
        err.contains("no longer in") && err.contains("rsup delete a"),
        "{err}"
    );
    assert_eq!(pids(&home), before);

    home.write(TWO);
    assert_eq!(home.rsup("reload a").0, 0);
    assert_ne!(pids(&home), before);
}

#[test]
fn starting_again_leaves_alone_what_runs() {
    let home = Home::new();
    home.write(TWO);
    assert_eq!(home.rsup("start --only a").0, 0);
    let (code, out, err) = home.rsup("start");
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("b started") && err.contains("note: a runs already; `rsup reload a`"),
        "{out}{err}"
    );
    // Another app of that name.
    let (code, _, err) = home.rsup("start -n a -- sleep 5");
    assert_eq!(code, 1);
    assert!(err.contains("another app called a runs already"), "{err}");
    // By name, and by file.
    assert_eq!(home.rsup("stop a b").0, 0);
    assert_eq!(home.rsup("start a").0, 0);
    assert_eq!(home.rsup("delete supervisor.toml").0, 0);
    assert_eq!(home.rsup("list --json").1, "[]\n");
}

#[test]
fn starts_at_once_end_with_one_daemon() {
    let home = Home::new();
    let starts: Vec<_> = (0..4)
        .map(|n| {
            let mut command = home.command(&format!("start -n app{n} -- sleep 1000"));
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for start in starts {
        let output = start.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(home.json("list").as_array().map(Vec::len), Some(4));
}
