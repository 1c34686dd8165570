//! A port that somebody else has.

use std::net::{Ipv6Addr, TcpListener};

use socket2::{Domain, Socket, Type};

use crate::common::{Home, apps, http};

/// Starts an app on the port that `holder` listens on, and again when it is gone.
#[track_caller]
fn refused(hold: impl FnOnce(u16) -> Option<TcpListener>, listen: &str) {
    let home = Home::new();
    let port = home.port();
    let Some(holder) = hold(port) else { return };
    let listen = listen.replace('P', &port.to_string());
    home.config(&format!(
        "[app.web]\n{}\nlisten = {listen}\n",
        apps::sample()
    ));
    let me = std::process::id().to_string();
    // The name is that of the thread group's leader: this test's program, cut to 15 characters.
    let name = std::fs::read_to_string("/proc/self/comm").expect("a name");
    home.run(&["start"])
        .code(1)
        .says(&[&port.to_string(), &me, name.trim()]);
    assert_eq!(home.list(), serde_json::json!([]), "nothing is left of it");
    drop(holder);
    home.ok(&["start"]);
    http::get(http::local(port), "/").expect("an answer");
}

fn plain(address: &str) -> impl Fn(u16) -> Option<TcpListener> {
    move |port| Some(TcpListener::bind((address, port)).expect("a free port"))
}

#[test]
fn by_a_plain_listener() {
    refused(plain("127.0.0.1"), "\"127.0.0.1:P\"");
    refused(plain("127.0.0.1"), "\"0.0.0.0:P\"");
    refused(plain("0.0.0.0"), "\"127.0.0.1:P\"");
    refused(plain("0.0.0.0"), "P");
}

#[test]
fn by_a_dual_stack_listener() {
    refused(
        |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).ok(),
        "\"127.0.0.1:P\"",
    );
}

/// It would let others in, and share its connections with them.
#[test]
fn by_a_listener_with_reuseport() {
    let hold = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_port(true).expect("the option");
        let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
        socket.bind(&address.into()).expect("a free port");
        socket.listen(16).expect("it listens");
        Some(socket.into())
    };
    refused(hold, "\"127.0.0.1:P\"");
    refused(hold, "P");
}

/// One of two apps cannot have its port: the other runs, and the exit code tells.
#[test]
fn by_another_app_of_ours() {
    let home = Home::new();
    let port = home.port();
    home.config(&format!(
        "[app.one]\n{}\nlisten = \"127.0.0.1:{port}\"\n",
        apps::sample()
    ));
    home.ok(&["start"]);
    home.write(
        "two.toml",
        &format!(
            "[app.two]\n{}\nlisten = \"127.0.0.1:{port}\"\n",
            apps::sample()
        ),
    );
    home.run(&["start", "two.toml"])
        .code(1)
        .says(&[&port.to_string(), "one"]);
    assert_eq!(home.list().as_array().map(Vec::len), Some(1));
    http::get(http::local(port), "/").expect("an answer");
}
