//! What right values become.

use super::*;
use crate::sys::needs::V6;

fn tcp(text: &str, v6only: bool) -> Listen {
    Listen::Tcp {
        addr: text.parse().expect("an address"),
        v6only,
    }
}

#[test]
fn addresses() {
    let listen = |value: &str| app(&format!("listen = {value}")).listen;
    for bare in [
        "3001",
        "\"3001\"",
        "\":3001\"",
        "\"*:3001\"",
        "\"[::]:3001\"",
    ] {
        assert_eq!(listen(bare), [tcp("[::]:3001", false)], "{bare}");
    }
    assert_eq!(listen("\"0.0.0.0:3001\""), [tcp("0.0.0.0:3001", false)]);
    assert_eq!(listen("\"localhost:3001\""), [tcp("127.0.0.1:3001", false)]);
    assert_eq!(listen("\"[::1]:3001\""), [tcp("[::1]:3001", true)]);
    assert_eq!(
        listen("[\"0.0.0.0:3001\", \"[::]:3001\"]"),
        [tcp("0.0.0.0:3001", false), tcp("[::]:3001", true)]
    );
    assert_eq!(
        listen("[\"[::]:3001\", \"0.0.0.0:3002\"]"),
        [tcp("[::]:3001", false), tcp("0.0.0.0:3002", false)]
    );
    assert_eq!(
        listen("\"unix:/run/api.sock\""),
        [Listen::Unix("/run/api.sock".into())]
    );
    assert_eq!(
        listen("\"unix:api.sock\""),
        [Listen::Unix("/api.sock".into())]
    );
    assert_eq!(listen("[]"), []);
    assert_eq!(
        listen("[\"127.0.0.1:80\", \"127.0.0.2:80\", \"[::1]:80\"]").len(),
        3
    );

    let no_ipv6 = Machine {
        ipv6: V6::Absent,
        ..MACHINE
    };
    let text = "[app.a]\ncommand = 'a'\nlisten = 3001";
    let spec = parse_on(no_ipv6, text, Path::new("/s.toml"))
        .expect("right")
        .config
        .apps
        .remove(0);
    assert_eq!(spec.listen, [tcp("0.0.0.0:3001", false)]);
}

#[test]
fn instances() {
    let count = |value: &str| app(&format!("instances = {value}")).instances;
    assert_eq!(
        [
            "1",
            "250",
            "\"max\"",
            "-1",
            "-3",
            "-4",
            "-9223372036854775808",
            "\"2\""
        ]
        .map(count),
        [1, 250, 4, 3, 1, 1, 1, 2]
    );
}

#[test]
fn surge_as_a_share_is_rounded_up() {
    let surge =
        |n: u16, value: &str| app(&format!("instances = {n}\nreload.max_surge = {value}")).surge(n);
    assert_eq!(
        [
            surge(4, "\"50%\""),
            surge(5, "\"50%\""),
            surge(1, "\"1%\""),
            surge(3, "\"100%\""),
            surge(1, "7")
        ],
        [2, 3, 1, 3, 7]
    );
    let default = |n: u16| app(&format!("instances = {n}")).surge(n);
    assert_eq!(
        [default(1), default(4), default(5), default(64)],
        [1, 1, 2, 16]
    );
    // No share asks for more slots than an address can have.
    let v6 = app("instances = 60\nlisten = \"[::1]:8080\"");
    assert_eq!((v6.surge(60), v6.surge(4)), (2, 1));
}

#[test]
fn a_replacement_proves_itself_for_as_long_as_a_start_takes_to_count() {
    let ready = |keys: &str| app(keys).reload.min_ready;
    assert_eq!(ready(""), Duration::from_secs(1));
    assert_eq!(ready("restart.min_uptime = \"3s\""), Duration::from_secs(3));
    assert_eq!(ready("reload.min_ready = 0"), Duration::ZERO);
}

#[test]
fn readiness_follows_the_addresses() {
    assert_eq!(app("listen = 3001").readiness.check, Check::Tcp);
    assert_eq!(
        app("listen = 'unix:/run/a.sock'").readiness.check,
        Check::Alive
    );
    assert_eq!(
        app("listen = ['unix:/run/a.sock', '3001']").readiness.check,
        Check::Tcp
    );
    let probe = app("listen = 3001\nreadiness = '/r?full=1'").readiness;
    let check = Check::Http {
        path: "/r?full=1".into(),
        host: None,
        headers: Default::default(),
        expect_status: vec![200..=299],
    };
    assert_eq!(probe.check, check);
    assert_eq!(
        (probe.interval, probe.timeout),
        (Duration::from_millis(250), Duration::from_secs(1))
    );
    let probe = app("liveness = { exec = 'check --fast', failure_threshold = 5 }")
        .liveness
        .expect("one");
    assert_eq!(
        probe.check,
        Check::Exec {
            command: vec!["check".into(), "--fast".into()]
        }
    );
    assert_eq!(
        (
            probe.interval,
            probe.success_threshold,
            probe.failure_threshold
        ),
        (Duration::from_secs(10), 1, 5)
    );
    assert_eq!(
        app("readiness = { notify = true }").readiness.check,
        Check::Notify
    );
    assert_eq!(
        app("listen = 1\nreadiness = { tcp = true, notify = false }")
            .readiness
            .check,
        Check::Tcp
    );
}

#[test]
fn statuses() {
    let status = |value: &str| match app(&format!(
        "listen = 1\nreadiness = {{ path = '/', expect_status = {value} }}"
    ))
    .readiness
    .check
    {
        Check::Http { expect_status, .. } => expect_status,
        other => panic!("{other:?}"),
    };
    assert_eq!(status("200"), [200..=200]);
    assert_eq!(
        status("'200, 204,300-399'"),
        [200..=200, 204..=204, 300..=399]
    );
    assert_eq!(status("[200, '400-499']"), [200..=200, 400..=499]);
}

#[test]
fn environment() {
    let folder = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write(".env", "A=file\nB=file\nC=file\nLISTEN_ADDR=:80\n");
    write("more.env", "export B='more'\n");
    let path = folder.path().join("supervisor.toml");
    let text = "[app.a]\ncommand = 'a'\nenv_file = ['.env', 'more.env']\nenv = { C = true, N = 3, F = 1.5 }\n";
    let spec = parse_on(MACHINE, text, &path)
        .expect("right")
        .config
        .apps
        .remove(0);
    assert_eq!(spec.cwd, folder.path());
    let pairs: Vec<_> = spec
        .env
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        pairs,
        [
            ("A", "file"),
            ("B", "more"),
            ("C", "true"),
            ("F", "1.5"),
            ("LISTEN_ADDR", ":80"),
            ("N", "3")
        ]
    );
}

#[test]
fn a_port_in_an_env_file_is_compared_with_listen() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(".env"), "PORT=3000\n").expect("written");
    let path = folder.path().join("supervisor.toml");
    let text = "[app.a]\ncommand = 'a'\nlisten = 3001\nenv_file = '.env'\n";
    let loaded = parse_on(MACHINE, text, &path).expect("right");
    let warning = loaded.warnings[0].finding();
    assert_eq!(
        (warning.line, warning.column, warning.severity),
        (Some(4), Some(12), "warning")
    );
}

#[test]
fn signals() {
    let signal = |value: &str| app(&format!("stop.signal = {value}")).stop.signal;
    assert_eq!(
        ["'SIGINT'", "'int'", "'QUIT'", "2", "'15'", "34"].map(signal),
        [2, 2, 3, 2, 15, 34]
    );
}

#[test]
fn links_are_kept_and_followed_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().canonicalize().expect("it exists").join(name);
    for release in ["r1", "r2"] {
        std::fs::create_dir(at(release)).expect("made");
    }
    std::os::unix::fs::symlink("r1", at("current")).expect("linked");
    let text = "[app.a]\ncommand = 'a'\ncwd = 'current'\n";
    let mut spec = parse_on(MACHINE, text, &at("supervisor.toml"))
        .expect("right")
        .config
        .apps
        .remove(0);
    assert_eq!((&spec.cwd, &spec.cwd_resolved), (&at("current"), &at("r1")));
    std::fs::remove_file(at("current")).expect("removed");
    std::os::unix::fs::symlink("r2", at("current")).expect("linked");
    resolve_cwd(&mut spec).expect("a folder");
    assert_eq!((&spec.cwd, &spec.cwd_resolved), (&at("current"), &at("r2")));
    std::fs::remove_file(at("current")).expect("removed");
    assert!(resolve_cwd(&mut spec).is_err());
    assert_eq!(spec.cwd_resolved, at("r2"));
}

#[test]
fn second_looks() {
    assert_eq!(warnings("listen = 3001\nenv = { PORT = 3001 }"), [""; 0]);
    assert_eq!(
        warnings("listen = 3001\nenv = { PORT = 3000 }"),
        ["PORT is 3000 here, but `listen` says 3001"]
    );
    assert_eq!(warnings("kill_timeout = 0").len(), 1);
    assert_eq!(
        warnings("listen = 1\nreadiness = '/a'\nliveness = '/a'").len(),
        1
    );
    assert_eq!(
        warnings("listen = 1\nreadiness = '/a'\nliveness = '/b'").len(),
        0
    );
    assert_eq!(warnings("reload.deadline = '5s'").len(), 1);
    let warned = loaded("[app.a]\ncommand = 'gunicorn -b :$PORT app'").warnings;
    assert_eq!(warned.len(), 1);
    assert_eq!(
        loaded("[app.a]\ncommand = \"sh -c 'exec app $PORT'\"")
            .warnings
            .len(),
        0
    );
    assert_eq!(
        loaded("[app.a]\ncommand = ['app', '$PORT']").warnings.len(),
        0
    );
}

mod command_line {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn spec(folder: &Path, script: Script) -> AppSpec {
        let script = Script {
            cwd: folder.to_owned(),
            ..script
        };
        script::from_script_on(MACHINE, &script)
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
    }

    #[test]
    fn scripts_get_their_interpreter() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["server.js", "app.py", "run.sh", "main.ts"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let run = |command: &[&str]| {
            let spec = spec(
                folder.path(),
                Script {
                    command: words(command),
                    ..Script::default()
                },
            );
            (spec.name.to_string(), spec.command)
        };
        assert_eq!(
            run(&["server.js", "--x"]),
            ("server".into(), words(&["node", "server.js", "--x"]))
        );
        assert_eq!(
            run(&["./app.py"]),
            ("app".into(), words(&["python3", "./app.py"]))
        );
        assert_eq!(run(&["run.sh"]), ("run".into(), words(&["sh", "run.sh"])));
        assert_eq!(
            run(&["npm", "start"]),
            ("npm".into(), words(&["npm", "start"]))
        );
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path().join("main.ts"), executable).expect("changed");
        assert_eq!(run(&["main.ts"]), ("main".into(), words(&["./main.ts"])));
    }

    #[test]
    fn options_are_checked_like_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = spec(
            folder.path(),
            Script {
                name: Some("api".into()),
                command: words(&["node", "server.js", "--flag"]),
                instances: Some("-1".into()),
                listen: words(&["3001", "unix:a.sock"]),
                env: words(&["A=1", "B=x=y", "A=2"]),
                readiness: Some("/ready".into()),
                liveness: Some("tcp".into()),
                max_memory: Some("300M".into()),
                kill_timeout: Some("1500".into()),
                stop_signal: Some("INT".into()),
                ..Script::default()
            },
        );
        assert_eq!(spec.source, None);
        assert_eq!(
            (spec.name.as_str(), spec.instances, spec.stop.signal),
            ("api", 3, 2)
        );
        assert_eq!(
            spec.listen,
            [
                tcp("[::]:3001", false),
                Listen::Unix(folder.path().join("a.sock"))
            ]
        );
        assert_eq!(
            spec.env,
            [
                ("A".to_owned(), "2".to_owned()),
                ("B".to_owned(), "x=y".to_owned())
            ]
            .into()
        );
        assert_eq!(spec.liveness.expect("one").check, Check::Tcp);
        assert_eq!(
            (spec.max_memory, spec.kill_timeout),
            (Some(300 << 20), Duration::from_millis(1500))
        );
        assert_eq!(spec.cwd, folder.path());
    }
}

mod init {
    use super::*;

    fn command(files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let text = sample(folder.path());
        let loaded = parse_on(MACHINE, &text, &folder.path().join("supervisor.toml"))
            .unwrap_or_else(|e| panic!("{}", e.render(false)));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        loaded.config.apps[0].command.join(" ")
    }

    #[test]
    fn looks_at_the_folder() {
        assert_eq!(command(&[]), "node server.js");
        assert_eq!(
            command(&[(
                "package.json",
                r#"{"scripts":{"start":"node dist/main.js --port 3000"}}"#
            )]),
            "node dist/main.js --port 3000"
        );
        assert_eq!(
            command(&[("package.json", r#"{"scripts":{"start":"next start"}}"#)]),
            "npm start"
        );
        assert_eq!(
            command(&[(
                "package.json",
                r#"{"scripts":{"start":"node a.js && node b.js"}}"#
            )]),
            "npm start"
        );
        assert_eq!(
            command(&[("package.json", r#"{"main":"lib/a.js"}"#)]),
            "node lib/a.js"
        );
        assert_eq!(
            command(&[("package.json", "{}"), ("index.js", "")]),
            "node index.js"
        );
        assert_eq!(command(&[("package.json", "not json")]), "node server.js");
        assert_eq!(
            command(&[("requirements.txt", "FastAPI==1\n"), ("app.py", "")]),
            "uvicorn app:app --port 3000"
        );
        assert_eq!(command(&[("pyproject.toml", "")]), "python3 main.py");
        assert_eq!(
            command(&[("manage.py", ""), ("site/wsgi.py", "")]),
            "gunicorn site.wsgi"
        );
        assert_eq!(
            command(&[("go.mod", "module example.com/team/api/v2\n\ngo 1.22\n")]),
            "./api"
        );
        assert_eq!(
            command(&[("Cargo.toml", "[package]\nname = \"api\"\n")]),
            "./target/release/api"
        );
        assert_eq!(
            command(&[("Cargo.toml", "[workspace]\n")]),
            "node server.js"
        );
        assert_eq!(command(&[(".env", "A=1\n")]), "node server.js");
    }

    #[test]
    fn is_short_and_commented() {
        let folder = tempfile::tempdir().expect("a folder");
        let project = folder.path().join("My Shop");
        std::fs::create_dir(&project).expect("made");
        std::fs::write(project.join("package.json"), r#"{"main":"index.js"}"#).expect("written");
        insta::assert_snapshot!(sample(&project));
    }
}

#[test]
fn the_admin_address_is_of_this_machine_unless_told_twice() {
    let admin = |keys: &str| {
        let text = format!("[app.a]\ncommand = 'a'\nlisten = 3001\n[supervisor]\n{keys}");
        parse_on(MACHINE, &text, Path::new("/s.toml")).map(|loaded| loaded.config.supervisor.admin)
    };
    let addr = |text: &str| Some(text.parse().expect("an address"));
    assert_eq!(admin("").expect("right"), None);
    for same in ["9700", "'9700'", "'127.0.0.1:9700'", "'localhost:9700'"] {
        assert_eq!(
            admin(&format!("admin = {same}")).expect("right"),
            addr("127.0.0.1:9700"),
            "{same}"
        );
    }
    assert_eq!(
        admin("admin = '[::1]:9700'").expect("right"),
        addr("[::1]:9700")
    );
    for public in [
        "':9700'",
        "'0.0.0.0:9700'",
        "'10.0.0.1:9700'",
        "'[::]:9700'",
    ] {
        assert!(admin(&format!("admin = {public}")).is_err(), "{public}");
        assert!(
            admin(&format!("admin = {public}\nadmin_public = true"))
                .expect("right")
                .is_some(),
            "{public}"
        );
    }
    assert!(admin("admin = 3001").is_err(), "an app has it");
}

#[test]
fn users_become_numbers() {
    let run_as = |keys: &str| app(keys).run_as.expect("a user");
    let root = run_as("user = 'root'");
    assert_eq!(
        (root.user.as_str(), root.group.as_str(), root.uid, root.gid),
        ("root", "root", 0, 0)
    );
    assert_eq!(root.home, Path::new("/root"));
    assert!(root.groups.contains(&0), "{root:?}");
    assert_eq!(run_as("user = 0"), root);
    let stranger = run_as("user = 4242424\ngroup = 0\ngroups = []");
    assert_eq!(
        (stranger.user.as_str(), stranger.uid, stranger.gid),
        ("4242424", 4_242_424, 0)
    );
    assert_eq!(
        (stranger.home.as_path(), stranger.groups.len()),
        (Path::new("/"), 0)
    );
    assert_eq!(run_as("user = 4242424\ngroup = 7").groups, [7]);
    assert_eq!(run_as("user = 'root'\ngroups = [5, 'root']").groups, [5, 0]);
    let own = run_as("group = 7");
    assert_eq!((own.uid, own.gid), (nix::unistd::geteuid().as_raw(), 7));
    let mut again = app("user = 'root'");
    let before = again.run_as.clone();
    resolve_user(&mut again).unwrap();
    assert_eq!(again.run_as, before);
}

#[test]
fn only_root_becomes_another() {
    let text = "[app.a]\ncommand = 'a'\nuser = 4242424\ngroup = 1";
    let loaded = parse_on(
        Machine {
            privileged: false,
            ..MACHINE
        },
        text,
        Path::new("/s.toml"),
    )
    .expect("right");
    assert_eq!(
        loaded
            .warnings
            .iter()
            .map(CliError::message)
            .collect::<Vec<_>>(),
        ["only a root rsup can run workers as `4242424`"]
    );
}

#[test]
fn umasks_and_limits() {
    for text in ["'027'", "'27'", "'0o27'", "0o27", "'0027'"] {
        assert_eq!(app(&format!("umask = {text}")).umask, Some(0o27), "{text}");
    }
    assert_eq!(app("").umask, None);
    let limits = app(
        "limits = { nofile = 4096, nice = -5, no_new_privs = true, capabilities = ['net_bind_service'], memory = '1G', cpu = 1.5, tasks = 9 }",
    )
    .limits;
    let keep = Capabilities::from_iter([10]);
    let expected = Limits {
        nofile: Some(4096),
        nice: Some(-5),
        no_new_privs: true,
        capabilities: Some(keep),
        memory: Some(1 << 30),
        cpu: Some(1.5),
        tasks: Some(9),
    };
    assert_eq!(limits, expected);
    assert_eq!(
        app("limits.capabilities = []").limits.capabilities,
        Some(Capabilities::default())
    );
    assert_eq!(app("limits.cpu = '2'").limits.cpu, Some(2.0));
    let late = warnings("max_memory = '2G'\nlimits = { memory = '1G' }");
    assert!(late[0].contains("comes too late"), "{late:?}");
}

#[test]
fn files_of_unix_sockets() {
    let file = |keys: &str| app(&format!("listen = 'unix:/run/a.sock'\n{keys}")).socket_file();
    assert_eq!(file(""), SocketFile::default());
    let of_app = file("user = 4242424\ngroup = 7\numask = '027'");
    assert_eq!(
        of_app,
        SocketFile {
            mode: Some(0o750),
            uid: Some(4_242_424),
            gid: None,
            app_gid: Some(7)
        }
    );
    let said = file(
        "user = 4242424\ngroup = 7\numask = '027'\nsocket = { mode = '0660', owner = 'root', group = 8 }",
    );
    assert_eq!(
        said,
        SocketFile {
            mode: Some(0o660),
            uid: Some(0),
            gid: Some(8),
            app_gid: Some(7)
        }
    );
    for mode in ["'660'", "'0o660'", "0o660", "'0660'"] {
        assert_eq!(
            file(&format!("socket.mode = {mode}")).mode,
            Some(0o660),
            "{mode}"
        );
    }
    let said = warnings("listen = 3001\nsocket.mode = '0660'");
    assert!(said[0].contains("listens on none"), "{said:?}");
}

#[test]
fn a_folder_that_keeps_clients_out_is_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("run");
    std::fs::create_dir(&inner).expect("made");
    let open = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .expect("chmod");
    };
    open(&inner, 0o755);
    open(folder.path(), 0o700);
    let said = |keys: &str| {
        warnings(&format!(
            "listen = 'unix:{}/a.sock'\n{keys}",
            inner.display()
        ))
    };
    let gid = nix::unistd::getegid();
    assert_eq!(said(""), [""; 0]);
    assert_eq!(said("socket.mode = '0600'"), [""; 0]);
    let closed = said("socket.mode = '0666'");
    assert!(
        closed[0].contains("mode 0700") && closed[0].contains("lets users other"),
        "{closed:?}"
    );
    assert_eq!(said("umask = '0'").len(), 1);
    open(folder.path(), 0o710);
    assert_eq!(
        said(&format!("socket = {{ mode = '0660', group = {gid} }}")),
        [""; 0]
    );
    let stranger = said("socket = { mode = '0660', group = 4711 }");
    assert!(
        stranger
            .iter()
            .any(|said| said.contains("lets the socket's group not in")),
        "{stranger:?}"
    );
    open(folder.path(), 0o711);
    assert_eq!(said("socket.mode = '0666'"), [""; 0]);
}

#[test]
fn what_the_machine_cannot_enforce_is_said() {
    let text = "[app.a]\ncommand = 'a'\nlimits = { memory = '1G', cpu = 1, tasks = 9 }";
    let some = crate::sys::cgroup::Controllers {
        memory: true,
        cpu: false,
        tasks: false,
    };
    let loaded = parse_on(
        Machine {
            controllers: some,
            ..MACHINE
        },
        text,
        Path::new("/s.toml"),
    )
    .expect("right");
    let warnings: Vec<&str> = loaded.warnings.iter().map(CliError::message).collect();
    assert!(
        warnings.len() == 2 && warnings[0].contains("`cpu`") && warnings[1].contains("`pids`"),
        "{warnings:?}"
    );
}

#[test]
fn what_is_shown_holds_no_values() {
    let spec = app(
        "env = { A = 'hunter2' }\nlisten = 1\nreadiness = { path = '/', headers = { Authorization = 'hunter2' } }",
    );
    assert!(serde_json::to_string(&spec).unwrap().contains("hunter2"));
    let shown = spec.without_secrets();
    assert_eq!(shown.env["A"], HIDDEN);
    assert!(!serde_json::to_string(&shown).unwrap().contains("hunter2"));
}
