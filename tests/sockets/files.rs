//! Whose the file of a unix socket is, and with which mode: with nginx in front, as another user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{Home, apps, http, signal, wait_until};

/// Mode, owner, group.
fn file(path: &Path) -> (u32, u32, u32) {
    let found = path.symlink_metadata().expect("a socket file");
    (
        found.permissions().mode() & 0o7777,
        found.uid(),
        found.gid(),
    )
}

fn number(kind: char, name: &str) -> u32 {
    let output = Command::new("getent")
        .args([if kind == 'u' { "passwd" } else { "group" }, name])
        .output()
        .expect("getent");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.split(':')
        .nth(2)
        .unwrap_or_else(|| panic!("no {name}"))
        .trim()
        .parse()
        .expect("a number")
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        apps::missing("users", "only root can give files away");
    }
    root
}

/// Lets every user into the folder of the daemon.
fn open_folder(home: &Home) {
    fs::create_dir(home.rsup_home()).expect("made");
    for folder in [home.folder(), &home.rsup_home()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).expect("chmod");
    }
}

/// Writes a configuration that runs tests/apps/sockets.py with this unix socket, and says whether it can.
fn config_at(home: &Home, path: &str, keys: &str) -> bool {
    let Some(python) = apps::python_for_all() else {
        return false;
    };
    let script = home.path("sockets.py");
    fs::copy(apps::sources().join("sockets.py"), &script).expect("copied");
    let command = apps::toml_command(&[python, script.to_str().expect("UTF-8")]);
    let more = "instances = 2\nrestart = { min_uptime = \"300ms\" }\nenv = { BIND = \"fd:3\" }";
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"unix:{path}\"\n{more}\n{keys}\n"
    ));
    true
}

fn config(home: &Home, keys: &str) -> bool {
    config_at(home, "api.sock", keys)
}

/// As the app's own bind(2) would have it, with and without a user, and as `[app.web.socket]` says.
#[test]
fn owner_group_and_mode() {
    let home = Home::new();
    open_folder(&home);
    let path = home.path("api.sock");
    if !root() || !config(&home, "umask = \"027\"") {
        return;
    }
    home.ok(&["start"]);
    assert_eq!(file(&path), (0o750, 0, 0));
    let daemon = (number('u', "daemon"), number('g', "daemon"));
    let (www, inode) = (
        number('g', "www-data"),
        path.metadata().expect("a file").ino(),
    );
    let client = UnixStream::connect(&path).expect("a connection");
    for (keys, expected) in [
        (
            "umask = \"007\"\nuser = \"daemon\"",
            (0o770, daemon.0, daemon.1),
        ),
        (
            "umask = \"0\"\nuser = \"daemon\"\ngroup = \"www-data\"",
            (0o777, daemon.0, www),
        ),
        (
            "user = \"daemon\"\nsocket = { group = \"www-data\", mode = \"0660\" }",
            (0o660, daemon.0, www),
        ),
        (
            "user = \"daemon\"\nsocket = { owner = 0, group = 4711, mode = 0o606 }",
            (0o606, 0, 4711),
        ),
    ] {
        assert!(config(&home, keys));
        home.ok(&["reload", "web"]);
        assert_eq!(file(&path), expected, "{keys}");
        assert_eq!(
            path.metadata().expect("a file").ino(),
            inode,
            "it is the same socket"
        );
        home.ok(&["restart", "web"]);
        assert_eq!(file(&path), expected, "{keys}");
    }
    drop(client);
    // A new daemon knows it as well, and a stale file is replaced by one of the same kind.
    let pid = || {
        home.ok(&["ping", "--json"]).json()["pid"]
            .as_u64()
            .expect("a pid") as u32
    };
    let before = pid();
    signal(before, Signal::SIGKILL);
    wait_until("another daemon", || pid() != before);
    home.ok(&["reload", "web"]);
    assert_eq!(file(&path), (0o606, 0, 4711));
    home.ok(&["stop", "web"]);
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    home.ok(&["start", "web"]);
    assert_eq!(file(&path), (0o606, 0, 4711));
}

/// A folder that gives its group to what is made in it does so here, too.
#[test]
fn a_folder_chooses_the_group() {
    let home = Home::new();
    open_folder(&home);
    if !root() {
        return;
    }
    let folder = home.path("run");
    fs::create_dir(&folder).expect("made");
    chown(&folder, None, Some(4711)).expect("chown");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o2775)).expect("chmod");
    if !config_at(&home, "run/api.sock", "user = \"daemon\"\numask = \"002\"") {
        return;
    }
    home.ok(&["start"]);
    assert_eq!(
        file(&folder.join("api.sock")),
        (0o775, number('u', "daemon"), 4711)
    );
}

/// nginx's master and its worker, which runs as www-data.
struct Nginx(Child);

impl Nginx {
    fn start(home: &Home, port: u16, socket: &Path) -> Self {
        let prefix = home.path("nginx");
        fs::create_dir(&prefix).expect("made");
        let folder = prefix.display();
        let text = format!(
            "user www-data;\ndaemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  \
             fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n  \
             server {{\n    listen 127.0.0.1:{port};\n    location / {{ proxy_pass http://unix:{}; }}\n  }}\n}}\n",
            socket.display()
        );
        let config = prefix.join("nginx.conf");
        fs::write(&config, text).expect("written");
        let mut command = home.command("nginx");
        command
            .arg("-p")
            .arg(&prefix)
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(prefix.join("error.log"));
        let nginx = Self(command.stdin(Stdio::null()).spawn().expect("nginx runs"));
        wait_until("nginx listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        signal(self.0.id(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn nginx_is_there() -> bool {
    let found = Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status();
    found
        .inspect_err(|why| apps::missing("nginx", &why.to_string()))
        .is_ok()
}

#[test]
fn nginx_in_front_as_another_user() {
    let home = Home::new();
    open_folder(&home);
    let port = home.port();
    let path = home.path("api.sock");
    if !root() || !nginx_is_there() || !config(&home, "user = \"daemon\"") {
        return;
    }
    home.ok(&["start"]);
    let nginx = Nginx::start(&home, port, &path);
    let ask = || http::get(http::local(port), "/").expect("an answer");
    assert_eq!(ask().status, 502, "it is closed to www-data");
    let open = "user = \"daemon\"\nsocket = { group = \"www-data\", mode = \"0660\" }";
    assert!(config(&home, open));
    home.ok(&["reload", "web"]);
    assert!(home.pids("web").contains(&ask().pid()));
    let load = Load::start(port, "/");
    for keys in [open, open, "user = \"daemon\"\numask = \"0\"", open] {
        assert!(config(&home, keys));
        home.ok(&["reload", "web"]);
        load.more(50);
    }
    home.ok(&["restart", "web"]);
    load.more(50);
    load.lossless();
    drop(nginx);
}
