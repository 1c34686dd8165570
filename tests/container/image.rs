//! The example of an image: no engine builds it here, but the command that it names runs as it would there, in a
//! namespace of its own, on a root of its own, as another user.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::apps::{missing, node};
use crate::common::http::local;
use crate::common::{Home, RSUP};
use crate::support::{Container, page, said, wait_status};

const USER: &str = "12345";

/// The words of an instruction in the last stage that is a JSON list.
fn instruction(dockerfile: &str, name: &str) -> Vec<String> {
    let line = dockerfile
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name}"));
    serde_json::from_str(line.trim()).unwrap()
}

/// Makes the root and becomes the command; arguments: the folder of the test, rsup, node, user, then the command.
const SETUP: &str = r#"
set -e
folder=$1 rsup=$2 node=$3 user=$4
shift 4
mount -t tmpfs tmpfs "$folder/image"
mkdir "$folder/image/upper" "$folder/image/work" "$folder/image/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/image/upper,workdir=$folder/image/work" "$folder/image/root"
cd "$folder/image/root"
mount -t proc proc proc
mount --rbind /dev dev
mkdir -p usr/local/bin app
cp --remove-destination "$rsup" usr/local/bin/rsup
cp --remove-destination "$node" usr/local/bin/node
cp "$folder/server.js" "$folder/supervisor.toml" app
mkdir -m 700 var/lib/rsup
chown "$user:$user" var/lib/rsup
exec chroot --userspec="$user:$user" . /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp RSUP_HOME=/var/lib/rsup TEST_HOME="$TEST_HOME" "$@"
"#;

#[test]
fn the_command_of_the_example_runs_as_in_a_container() {
    if !nix::unistd::geteuid().is_root() {
        return missing("root", "only root can mount a root of its own");
    }
    let Some(node) = node() else { return };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/docker");
    let read = |name: &str| fs::read_to_string(example.join(name)).unwrap();
    let home = Home::new();
    let (port, admin) = (home.port(), home.port());
    home.write("server.js", &read("server.js"));
    home.config(
        &read("supervisor.toml")
            .replace("3001", &port.to_string())
            .replace("127.0.0.1:9700", &format!("127.0.0.1:{admin}")),
    );
    fs::create_dir(home.path("image")).unwrap();
    let dockerfile = read("Dockerfile");
    assert!(
        dockerfile.contains("\nENV RSUP_HOME=/var/lib/rsup\n")
            && dockerfile.contains("\nWORKDIR /app\n")
    );
    let command = [
        instruction(&dockerfile, "ENTRYPOINT"),
        instruction(&dockerfile, "CMD"),
    ]
    .concat();
    let words: Vec<&str> = [
        "sh",
        "-c",
        SETUP,
        "sh",
        home.folder().to_str().unwrap(),
        RSUP,
        node,
        USER,
    ]
    .into_iter()
    .chain(command.iter().map(String::as_str))
    .collect();
    let file = |name: &str| Stdio::from(fs::File::create(home.path(name)).unwrap());
    let Some(container) =
        Container::run(&home, &["--mount"], &words, file("stdout"), file("stderr"))
    else {
        return;
    };
    wait_status(local(admin), "/readiness", 200);
    assert_eq!(page(local(port), "/").json()["uid"].to_string(), USER);
    container.signal(Signal::SIGHUP);
    crate::support::wait_said(&home, "api is reloaded");
    wait_status(local(admin), "/readiness", 200);
    assert_eq!(page(local(port), "/").status, 200);
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
    let text = fs::read_to_string(home.path("stdout")).unwrap();
    assert!(
        text.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{text}"
    );
    assert!(
        text.contains(&format!("listening on {port}")),
        "{}",
        said(&home)
    );
}
