//! Docker's default profiles: the app's bind is looked at through /proc.

use crate::common::{Home, apps};
use crate::{OLD, TODAY, node, node_under_a_shell, serves};

#[track_caller]
fn with_both(command: Option<String>, listen: &str) {
    let Some(command) = command else { return };
    for profile in [TODAY, OLD] {
        let Some(home) = Home::restricted(&[profile, &["no-ptrace"]].concat()) else {
            return;
        };
        serves(&home, &command, listen, "");
    }
}

#[test]
fn node_is_taken_over() {
    with_both(node(), "0.0.0.0:P");
}

#[test]
fn node_under_a_shell_is_taken_over() {
    with_both(node_under_a_shell(), "[::]:P");
}

/// System calls without libc, on MPTCP sockets with some versions.
#[test]
fn go_is_taken_over() {
    with_both(
        apps::go_server().map(|program| apps::toml_command(&[program.to_str().expect("UTF-8")])),
        "[::]:P",
    );
}

#[test]
fn asyncio_is_taken_over() {
    let server = |name: &str| {
        let script = apps::sources().join(name);
        Some(apps::toml_command(&[
            apps::python()?,
            script.to_str().expect("UTF-8"),
        ]))
    };
    with_both(server("server.py"), "0.0.0.0:P");
}

/// Without an address asyncio binds both families; whether a socket is for IPv6 alone cannot be seen here.
#[test]
fn asyncio_on_both_families_is_taken_over() {
    let Some(python) = apps::python() else { return };
    let text = std::fs::read_to_string(apps::sources().join("server.py"))
        .expect("the server")
        .replace("\"0.0.0.0\"", "None");
    with_both(Some(apps::toml_command(&[python, "-c", &text])), "[::]:P");
}

/// What is no listening socket of TCP goes its own way.
#[test]
fn other_binds_pass() {
    let Some(python) = apps::python() else { return };
    let text = "
import asyncio, os, socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', int(os.environ['PORT'])))
v = socket.socket(); v.bind(('127.0.0.1', 0)); v.listen()
async def answer(reader, writer):
    await reader.readuntil(b'\\r\\n\\r\\n')
    name = u.getsockname()[1] == int(os.environ['PORT']) and v.getsockname()[1] not in (0, int(os.environ['PORT']))
    writer.write(b'HTTP/1.0 200 OK\\r\\n\\r\\n' if name else b'HTTP/1.0 500 Wrong\\r\\n\\r\\n')
    await writer.drain(); writer.close()
async def main():
    await (await asyncio.start_server(answer, '127.0.0.1', int(os.environ['PORT']))).serve_forever()
asyncio.run(main())
";
    let Some(home) = Home::restricted(&[OLD, &["no-ptrace"]].concat()) else {
        return;
    };
    let port = home.port();
    let command = apps::toml_command(&[python, "-c", text]);
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/\"\n"
    ));
    home.ok(&["start"]);
    assert_eq!(
        crate::common::http::get(crate::common::http::local(port), "/")
            .expect("an answer")
            .status,
        200
    );
}
