//! The admin listener during start, reload and failure.

use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;

use crate::common::http::{get, local};
use crate::common::{Home, signal, wait_for, wait_until};
use crate::support::{Container, admin, app, edit, page, up, wait_status, web};

#[test]
fn it_is_off_by_default() {
    let home = Home::new();
    web(&home, "web", "");
    home.ok(&["start"]);
    assert!(home.ok(&["ping", "--json"]).json()["admin"].is_null());
}

#[test]
fn an_orchestrator_sees_a_container_come_and_go() {
    let home = Home::new();
    web(
        &home,
        "web",
        "instances = 2\nenv = { WARM_MS = \"1000\" }\nkill_timeout = \"60s\"",
    );
    web(
        &home,
        "slow",
        "env = { IGNORE_SIGTERM = \"1\" }\nkill_timeout = \"60s\"",
    );
    let address = admin(&home);
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    // It answers before its apps are ready, and says which is not.
    let early = wait_status(address, "/readiness", 503).json();
    assert_eq!(early["ready"], false);
    let of_web = early["apps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|app| app["app"] == "web")
        .unwrap();
    assert_eq!(
        (&of_web["ready"], &of_web["instances"]),
        (&false.into(), &2.into()),
        "{early}"
    );
    assert!(of_web["why"].is_string(), "{early}");
    assert_eq!(page(address, "/liveness").status, 200);
    assert_eq!(page(address, "/health").json()["healthy"], true);
    let ready = wait_status(address, "/readiness", 200).json();
    assert!(
        ready["apps"]
            .as_array()
            .unwrap()
            .iter()
            .all(|app| app["ready"] == true && app["why"].is_null()),
        "{ready}"
    );
    container.signal(Signal::SIGTERM);
    // The way out is told before the last worker is gone.
    let leaving = wait_status(address, "/readiness", 503).json();
    assert_eq!(leaving["why"], "rsup is stopping every app and will end");
    assert_eq!(page(address, "/liveness").status, 200);
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 143);
}

#[test]
fn a_reload_good_or_bad_leaves_the_whole_ready() {
    let home = Home::new();
    web(
        &home,
        "web",
        "instances = 2\nlisten_timeout = \"2s\"\nenv = { APP_VERSION = \"v1\" }",
    );
    let address = admin(&home);
    home.ok(&["start"]);
    let mut looks = 0;
    let mut watched = |code: i32| {
        let reload = home.background(&["reload", "web"]);
        let ended = wait_for("the end of the reload", || {
            let answer = page(address, "/readiness");
            assert_eq!(answer.status, 200, "{}", answer.body);
            looks += 1;
            reload.ended().ok_or("not yet")
        });
        ended.code(code);
    };
    watched(0);
    edit(&home, "\"v1\"", "\"v1\", NEVER_READY = \"1\"");
    watched(1);
    assert!(looks > 20, "{looks} looks");
}

#[test]
fn an_app_that_is_given_up_is_told_with_its_reason_and_others_are_not_waited_for() {
    let home = Home::new();
    web(&home, "web", "");
    app(
        &home,
        "done",
        "command = [\"true\"]\nrestart.policy = \"on-failure\"",
    );
    app(
        &home,
        "broken",
        "command = [\"sh\", \"-c\", \"exit 3\"]\nrestart = { max_restarts = 1, backoff = \"1ms\" }",
    );
    let address = admin(&home);
    home.run(&["start"]).code(1);
    home.wait_view("broken", "it is given up", |v| v["phase"] == "errored");
    let answer = wait_status(address, "/readiness", 503).json();
    let apps = answer["apps"].as_array().unwrap();
    let find = |name: &str| apps.iter().find(|app| app["app"] == name);
    assert_eq!(find("web").unwrap()["ready"], true, "{answer}");
    assert!(find("done").is_none(), "{answer}");
    let broken = find("broken").unwrap();
    assert!(
        broken["ready"] == false && broken["why"].as_str().unwrap().contains("code 3"),
        "{answer}"
    );
    // rsup itself is well.
    assert_eq!(page(address, "/health").status, 200);
    home.ok(&["stop", "broken"]);
    wait_status(address, "/readiness", 200);
    home.ok(&["stop", "web"]);
    assert_eq!(
        page(address, "/readiness").status,
        200,
        "nothing is wanted, so nothing is waited for"
    );
}

#[test]
fn an_address_that_is_taken_stops_no_app() {
    let home = Home::new();
    let port = web(&home, "web", "");
    let address = admin(&home);
    let holder = TcpListener::bind(address).unwrap();
    let me = std::process::id().to_string();
    home.ok(&["start"])
        .says(&["warning", "admin listener", &address.to_string(), &me]);
    assert_eq!(page(local(port), "/").status, 200);
    let ping = home.ok(&["ping", "--json"]).json();
    assert!(
        ping["admin"]["problem"].as_str().unwrap().contains(&me),
        "{ping}"
    );
    home.ok(&["ping"]).says(&["admin listener", "cannot"]);
    drop(holder);
    home.ok(&["reload", "web"]);
    assert_eq!(page(address, "/readiness").status, 200);
    home.ok(&["ping"])
        .says(&[&format!("http://{address}/"), "supervisor.toml"]);
}

#[test]
fn it_moves_and_goes_as_the_file_says() {
    let home = Home::new();
    web(&home, "web", "");
    let first = admin(&home);
    home.ok(&["start"]);
    assert_eq!(page(first, "/health").status, 200);
    let second = local(home.port());
    edit(
        &home,
        &format!("admin = {}", first.port()),
        &format!("admin = {}", second.port()),
    );
    home.ok(&["reload", "web"]);
    assert_eq!(page(second, "/health").status, 200);
    assert!(TcpStream::connect(first).is_err());
    edit(&home, &format!("admin = {}", second.port()), "");
    home.ok(&["start"]);
    assert!(TcpStream::connect(second).is_err());
    assert!(home.ok(&["ping", "--json"]).json()["admin"].is_null());
}

#[test]
fn of_several_files_the_last_that_names_an_address_has_its_way() {
    let home = Home::new();
    web(&home, "web", "");
    let first = admin(&home);
    home.ok(&["start"]);
    let second = local(home.port());
    let other = "command = [\"sleep\", \"1000\"]\nrestart.min_uptime = \"10ms\"";
    home.write("silent.toml", &format!("[app.silent]\n{other}\n"));
    home.ok(&["start", "silent.toml"]);
    assert_eq!(
        page(first, "/health").status,
        200,
        "a file that names none has no say"
    );
    home.write(
        "other.toml",
        &format!(
            "[app.other]\n{other}\n[supervisor]\nadmin = {}\n",
            second.port()
        ),
    );
    home.ok(&["start", "other.toml"]).says(&[
        "warning",
        "moves to",
        &second.to_string(),
        "other.toml",
        "supervisor.toml",
    ]);
    assert_eq!(page(second, "/health").status, 200);
    assert!(get(first, "/health").is_err());
}

#[test]
fn a_public_address_must_be_asked_for_twice() {
    let home = Home::new();
    web(&home, "web", "");
    let port = admin(&home).port();
    edit(
        &home,
        &format!("admin = {port}"),
        &format!("admin = \"0.0.0.0:{port}\""),
    );
    home.run(&["check", "supervisor.toml"]).code(2).says(&[
        "other machines",
        "admin_public = true",
        &format!("127.0.0.1:{port}"),
    ]);
    edit(&home, "[supervisor]", "[supervisor]\nadmin_public = true");
    home.ok(&["start"]);
    assert_eq!(page(local(port), "/health").status, 200);
}

#[test]
fn it_is_there_in_a_namespace_as_well_and_follows_sighup() {
    let home = Home::new();
    web(&home, "web", "");
    let first = admin(&home);
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    let second = local(home.port());
    edit(
        &home,
        &format!("admin = {}", first.port()),
        &format!("admin = {}", second.port()),
    );
    container.signal(Signal::SIGHUP);
    wait_until("it has moved", || {
        get(second, "/health").is_ok_and(|answer| answer.status == 200)
    });
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

#[test]
fn it_outlives_a_daemon_that_is_killed() {
    let home = Home::new();
    web(&home, "web", "");
    let address = admin(&home);
    home.ok(&["start"]);
    let daemon = home.ok(&["ping", "--json"]).json()["pid"].as_u64().unwrap() as u32;
    signal(daemon, Signal::SIGKILL);
    wait_until("another daemon", || {
        let ping = home.run(&["ping", "--json"]);
        ping.code == 0 && ping.json()["pid"].as_u64() != Some(daemon.into())
    });
    wait_status(address, "/readiness", 200);
    home.ok(&["ping"]).says(&[&format!("http://{address}/")]);
}
