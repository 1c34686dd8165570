//! What is advised fits what was typed, and what there is.

use crate::common::apps::toml_command;
use crate::common::{Home, apps, wait_until};
use crate::support::Life;

#[test]
fn a_busy_app_is_told_with_the_verb_that_was_typed() {
    let home = Home::new();
    home.web("web", "listen_timeout = \"50s\"\nenv = { A = \"1\" }");
    home.ok(&["start"]);
    let text = std::fs::read_to_string(home.path("supervisor.toml")).unwrap();
    home.config(&text.replace("A = \"1\"", "NEVER_READY = \"1\""));
    let stuck = home.background(&["reload", "web"]);
    home.wait_view("web", "the reload", |view| {
        view["operation"]["kind"] == "reload"
    });
    for (words, hint) in [
        (&["reload", "web"][..], "`rsup reload web --wait`"),
        (&["restart", "web"], "then `rsup restart web` again"),
        (&["scale", "web", "2"], "then `rsup scale web N` again"),
    ] {
        let run = home.run(words).code(1);
        assert!(
            run.err.contains("busy") && run.err.contains(hint),
            "{}",
            run.err
        );
        assert_eq!(
            run.err.contains("--wait"),
            words[0] == "reload",
            "{}",
            run.err
        );
    }
    home.ok(&["stop", "web"]);
    stuck.wait().code(1);
}

/// What is left of such an app is ended, and its user told why it does not run.
#[test]
fn an_app_that_goes_into_the_background_is_told_to_stay() {
    let home = Home::new();
    // By one fork and a session of its own, as a shell's `&`.
    let nginx = home.script("nginx", "#!/bin/sh\nsetsid sleep 1000 &\nexit 0\n");
    home.app(
        "proxy",
        &format!(
            "{}\nlisten = {}\nrestart = {{ max_restarts = 1, backoff = \"10ms\" }}",
            toml_command(&[nginx.to_str().unwrap()]),
            home.port()
        ),
    );
    let run = home.run(&["start"]).code(1);
    assert!(
        run.err.contains("exited with code 0")
            && run
                .err
                .contains("left processes in the background: nginx has to stay")
            && run.err.contains("daemon off;"),
        "{}",
        run.err
    );
    let view = home.wait_view("proxy", "given up", |view| view["phase"] == "errored");
    let reason = view["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("nginx has to stay in the foreground"),
        "{reason}"
    );
    assert!(
        home.events("proxy")
            .contains("left processes in the background")
    );
    wait_until("nothing is left of it", || {
        home.processes()
            .iter()
            .all(|(_, line)| !line.contains("sleep 1000"))
    });
    home.ok(&["delete", "all"]);

    // By two, as daemon(3) and the libraries for it, after it has bound its port.
    let Some(python) = apps::python() else { return };
    let script = home.write(
        "server.py",
        "import os, socket, time\n\
         s = socket.create_server((\"127.0.0.1\", int(os.environ[\"PORT\"])))\n\
         if os.fork(): os._exit(0)\n\
         os.setsid()\n\
         if os.fork(): os._exit(0)\n\
         null = os.open(os.devnull, os.O_RDWR)\n\
         for fd in (0, 1, 2): os.dup2(null, fd)\n\
         open(\"server.pid\", \"w\").write(str(os.getpid()))\n\
         time.sleep(1000)\n",
    );
    let port = home.port().to_string();
    let command = ["start", "-n", "double", "-l", &port, "--", python];
    let run = home
        .run(&[&command[..], &[script.to_str().unwrap()]].concat())
        .code(1);
    assert!(
        run.err.contains("server.py has to stay in the foreground")
            && run.err.contains("`--daemon`"),
        "{}",
        run.err
    );
}

/// One that has failed in the foreground is told nothing of the kind.
#[test]
fn an_app_that_just_ends_is_not_told_to_stay() {
    let home = Home::new();
    home.app(
        "web",
        &format!(
            "command = [\"sh\", \"-c\", \"sleep 1000 & exit 3\"]\nlisten = {}\nrestart.policy = \"never\"",
            home.port()
        ),
    );
    let run = home.run(&["start"]).code(1);
    assert!(!run.err.contains("foreground"), "{}", run.err);
}

#[test]
fn stopping_all_of_nothing_is_done() {
    let home = Home::new();
    home.app("job", "command = \"sleep 1000\"");
    home.ok(&["start"]);
    home.ok(&["delete", "all"]);
    for words in ["stop", "delete", "reload", "restart", "start"].map(|verb| [verb, "all"]) {
        home.ok(&words).says(&["there are no apps"]);
    }
    // What a daemon of before knew is forgotten as well.
    home.ok(&["start"]);
    home.ok(&["kill"]);
    home.ok(&["stop", "all"]).says(&["no daemon runs"]);
    home.ok(&["delete", "job"]);
    home.ok(&["kill"]);
    home.run(&["start", "job"])
        .code(1)
        .says(&["no app of that name"]);
    home.ok(&["kill"]).says(&["no daemon runs"]);
}

#[test]
fn a_script_may_be_called_anything() {
    let home = Home::new();
    for (script, app) in [
        ("my sërver's job.sh", "my-server-s-job"),
        ("Größe.sh", "Grosse"),
        ("數據.sh", "Shu-Ju"),
        ("...sh", "app"),
    ] {
        home.write(script, "exec sleep 1000\n");
        home.ok(&["start", script]);
        assert_eq!(home.view(app)["phase"], "ready", "{script}");
        home.ok(&["delete", app]);
    }
}

#[test]
fn a_program_may_have_blanks_in_its_name() {
    let home = Home::new();
    std::fs::create_dir(home.path("my app")).unwrap();
    home.script("my app/sleepy one", "#!/bin/sh\nexec sleep 1000\n");
    let program = home.path("my app/sleepy one");
    home.config(&format!(
        "[app.a]\n{}\n[app.b]\ncommand = [\"./my app/sleepy one\"]\n",
        toml_command(&[program.to_str().unwrap()])
    ));
    let run = home.ok(&["start"]);
    assert!(!run.err.contains("warning"), "{}", run.err);
    home.ok(&["start", "-n", "c", "--", program.to_str().unwrap()]);
    for app in ["a", "b", "c"] {
        assert_eq!(home.view(app)["phase"], "ready", "{app}");
    }
    // Where there is no such file, it was meant otherwise.
    home.config("[app.d]\ncommand = [\"sleep 1000\"]\n");
    home.ok(&["check"])
        .says(&["there is no file `sleep 1000`", "each word as a string"]);
    home.run(&["start"])
        .code(1)
        .says(&["there is no file `sleep 1000`"]);
}
