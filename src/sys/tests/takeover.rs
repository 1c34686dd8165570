//! Unmodified servers on sockets of rsup.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use super::{Guard, PATIENCE, ended, http, localhost, plan, program, report, text};
use crate::exit::Exit;
use crate::sys::listen::{Backlog, Family, Group, is_nonblocking};
use crate::sys::raw;
use crate::sys::spawn::{Plan, spawn};
use crate::sys::steer::{Balance, Table};
use crate::sys::takeover::{Answer, Bind, Call, Listener, Support, left_unanswered, probe_support};

/// Prepares a plan for takeover; false (and a skip) where the kernel forbids it.
fn prepare(plan: &mut Plan) -> bool {
    match probe_support().unwrap() {
        Support::Yes { needs_no_new_privs } => {
            plan.takeover = true;
            plan.no_new_privs = needs_no_new_privs;
            true
        }
        Support::No { why } => {
            assert!(std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none(), "{why}");
            eprintln!("skipped: {why}");
            false
        }
    }
}

fn next(listener: &Listener) -> Bind {
    match next_call(listener) {
        Call::Bind(bind) => bind,
        Call::Connect(connect) => panic!("{connect:?}"),
    }
}

fn next_call(listener: &Listener) -> Call {
    let deadline = Instant::now() + PATIENCE;
    loop {
        raw::poll(listener, libc::POLLIN, PATIENCE).unwrap();
        if let Some(call) = listener.receive().unwrap() {
            return call;
        }
        assert!(Instant::now() < deadline, "no call");
    }
}

fn group() -> Group {
    let group = Group::open(localhost(), false, 2).unwrap();
    let weights = vec![0, 1];
    group
        .steer(&Table {
            weights,
            balance: Balance::Random,
            hold: 0,
        })
        .unwrap();
    group
}

#[test]
fn a_call_that_was_received_and_not_answered_is_noticed() {
    let (mut plan, _out) = plan(&[
        "python3",
        "-c",
        "import socket; socket.socket().bind(('127.0.0.1', 0))",
    ]);
    if !prepare(&mut plan) {
        return;
    }
    let mut child = spawn(plan).unwrap();
    let listener = report(&mut child.exec).unwrap().notify.unwrap();
    let child = Guard(child);
    raw::poll(&listener, libc::POLLIN, PATIENCE).unwrap();
    assert!(
        !left_unanswered(&listener, &[child.0.pid]),
        "it waits to be received"
    );
    let bind = next(&listener);
    assert!(left_unanswered(&listener, &[child.0.pid]));
    listener.proceed(&bind).unwrap();
    raw::poll(&child.0.pidfd, libc::POLLIN, PATIENCE).unwrap();
    assert!(!left_unanswered(&listener, &[child.0.pid]));
}

/// A worker of root could harm others with it: tests/survival shows what one of an ordinary user
/// gets.
#[test]
fn a_worker_of_root_holds_no_listener() {
    if program("python3").is_none() || !nix::unistd::geteuid().is_root() {
        return;
    }
    for no_new_privs in [false, true] {
        let script = "import socket; socket.socket().bind(('127.0.0.1', 0))";
        let (mut plan, _out) = plan(&["python3", "-c", script]);
        if !prepare(&mut plan) {
            return;
        }
        plan.no_new_privs |= no_new_privs;
        let mut child = spawn(plan).unwrap();
        let listener = report(&mut child.exec).unwrap().notify.unwrap();
        let child = Guard(child);
        let bind = next(&listener);
        assert!(!listener.leave_with(&bind).unwrap());
        let open = std::fs::read_dir(format!("/proc/{}/fd", child.0.pid)).unwrap();
        let links = open
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        assert!(
            links
                .into_iter()
                .all(|link| !link.to_string_lossy().contains("seccomp"))
        );
    }
}

/// Starts a server, hands it slot 1 and sends it a request.
fn serve(argv: &[&str], nonblocking: bool, bound: &str) {
    let group = group();
    let port = group.addr().port();
    let (mut plan, _out) = plan(argv);
    plan.env.extend(super::strings(&[
        &format!("PORT={port}"),
        "PYTHONUNBUFFERED=1",
    ]));
    if !prepare(&mut plan) {
        return;
    }
    // Waits in the queue before there is a worker to accept it.
    let early = TcpStream::connect(group.addr()).unwrap();
    let mut child = spawn(plan).unwrap();
    let listener = report(&mut child.exec).unwrap().notify.unwrap();
    let child = Guard(child);
    let bind = loop {
        let bind = next(&listener);
        if bind.addr.port() == port && bind.socket.is_stream {
            break bind;
        }
        assert_eq!(listener.proceed(&bind).unwrap(), Answer::Delivered);
    };
    assert_eq!(
        bind.addr,
        format!("{bound}:{port}").parse::<SocketAddr>().unwrap()
    );
    assert_eq!(bind.socket.nonblocking, nonblocking);
    assert!(bind.socket.cloexec);
    assert_eq!(bind.socket.is_v6, bind.addr.is_ipv6());
    assert!(
        bind.process == child.0.pid
            || super::sys_procfs::descendants(child.0.pid)
                .iter()
                .any(|&(pid, _)| pid == bind.process)
    );
    let mut group = group;
    let mut early = Some(early);
    if bind.socket.is_v6 {
        // What the app gets must be of the family that it asked for.
        let rescued = group.change_family(Family::V6Mapped).unwrap();
        assert_eq!(rescued.len(), 1);
        early = None;
        let weights = vec![0, 1];
        group
            .steer(&Table {
                weights,
                balance: Balance::Random,
                hold: 0,
            })
            .unwrap();
    }
    assert_eq!(
        listener.inject(&bind, group.fd(1)).unwrap(),
        Answer::Delivered
    );
    // An app that sets it later, as asyncio does, may have done so by now.
    assert!(!nonblocking || is_nonblocking(group.fd(1)).unwrap());
    if let Some(early) = early {
        assert!(http(early).contains("200 OK"));
    }
    for _ in 0..5 {
        let answer = http(TcpStream::connect(group.addr()).unwrap());
        assert!(answer.contains("200 OK"), "{answer}");
    }
    assert!(matches!(
        group.backlog(1).unwrap(),
        Backlog::Listening { queued: 0, .. }
    ));
    drop(child);
    // The server is dead, and the socket lives: a connection waits.
    let _late = TcpStream::connect(group.addr()).unwrap();
    assert!(matches!(
        group.backlog(1).unwrap(),
        Backlog::Listening { queued: 1, .. }
    ));
    raw::poll(&listener, libc::POLLIN, PATIENCE).unwrap();
    let over = listener.receive().unwrap_err();
    assert_eq!(over.kind(), std::io::ErrorKind::BrokenPipe);
}

const ASYNCIO: &str = r"
import asyncio, os
async def answer(reader, writer):
    await reader.readuntil(b'\r\n\r\n')
    writer.write(b'HTTP/1.0 200 OK\r\n\r\nhello')
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, '127.0.0.1', int(os.environ['PORT']))
    await server.serve_forever()
asyncio.run(main())
";

const BLOCKING: &str = r"
import os, http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'hello')
http.server.HTTPServer(('0.0.0.0', int(os.environ['PORT'])), Answer).serve_forever()
";

const NODE: &str = r"
require('http').createServer((q, a) => a.end('hello')).listen(process.env.PORT);
";

#[test]
fn asyncio() {
    if program("python3").is_some() {
        serve(&["python3", "-c", ASYNCIO], false, "127.0.0.1");
    }
}

#[test]
fn a_blocking_server() {
    if program("python3").is_some() {
        serve(&["python3", "-c", BLOCKING], false, "0.0.0.0");
    }
}

/// Below a shell, and of the other family: Node binds `::`.
#[test]
fn node_under_a_shell() {
    if program("node").is_some() {
        serve(&["sh", "-c", "node -e \"$0\"; true", NODE], true, "[::]");
    }
}

const MANY: &str = r"
import os, socket, errno
port = int(os.environ['PORT'])
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', port)); print('udp')
x = socket.socket(socket.AF_UNIX); x.bind('\0rsup-takeover-%d' % os.getpid()); print('unix')
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
os.set_inheritable(s.fileno(), True)
try: s.bind(('::1', port))
except OSError as e: print(errno.errorcode[e.errno])
t = socket.socket(); t.bind(('127.0.0.1', 0)); print('other', t.getsockname()[1] != 0)
";

#[test]
fn other_binds_pass_and_can_be_refused() {
    if program("python3").is_none() {
        return;
    }
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let (mut plan, out) = plan(&["python3", "-c", MANY]);
    plan.env.extend(super::strings(&[&format!("PORT={port}")]));
    if !prepare(&mut plan) {
        return;
    }
    let mut child = spawn(plan).unwrap();
    let listener = report(&mut child.exec).unwrap().notify.unwrap();
    let udp = next(&listener);
    assert!(!udp.socket.is_stream && udp.addr.port() == port);
    listener.proceed(&udp).unwrap();
    let v6 = next(&listener);
    assert!(
        v6.socket.v6only == Some(true)
            && v6.socket.is_v6
            && v6.socket.is_stream
            && !v6.socket.cloexec
    );
    listener.refuse(&v6, libc::EADDRINUSE).unwrap();
    let other = next(&listener);
    assert_eq!(other.addr, localhost());
    listener.proceed(&other).unwrap();
    assert_eq!(
        listener.proceed(&other).unwrap(),
        Answer::Vanished,
        "only once"
    );
    assert_eq!(text(out), "udp\nunix\nEADDRINUSE\nother True\n");
    assert_eq!(ended(&child), Exit::Code(0));
    assert_eq!(
        listener.inject(&other, group().fd(0)).unwrap(),
        Answer::Vanished
    );
}

const CONNECTS: &str = r"
import errno, os, socket
port = int(os.environ['PORT'])
for kind in socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_STREAM:
    print(errno.errorcode.get(socket.socket(socket.AF_INET, kind).connect_ex(('127.0.0.1', port)), 'there'))
u = socket.socket(socket.AF_UNIX); print(errno.errorcode[u.connect_ex('/nowhere')])
socket.socket().bind(('127.0.0.1', 0))
";

#[test]
fn connects_are_seen_where_they_are_asked_for() {
    if program("python3").is_none() {
        return;
    }
    let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = there.local_addr().unwrap().port();
    for trapped in [true, false] {
        let (mut plan, out) = plan(&["python3", "-c", CONNECTS]);
        plan.env.extend(super::strings(&[&format!("PORT={port}")]));
        if !prepare(&mut plan) {
            return;
        }
        plan.trap_connect = trapped;
        let mut child = spawn(plan).unwrap();
        let listener = report(&mut child.exec).unwrap().notify.unwrap();
        if trapped {
            let connects: Vec<_> = (0..3)
                .map(|at| {
                    let Call::Connect(connect) = next_call(&listener) else {
                        panic!("a bind comes last")
                    };
                    assert!(
                        connect.addr == there.local_addr().unwrap() && connect.is_to_this_machine()
                    );
                    let stream = connect.is_stream().unwrap();
                    let refused = at == 1;
                    if refused {
                        listener.refuse(&connect, libc::ECONNREFUSED)
                    } else {
                        listener.proceed(&connect)
                    }
                    .unwrap();
                    stream
                })
                .collect();
            assert_eq!(connects, [false, true, true]);
        }
        listener.proceed(&next(&listener)).unwrap();
        let tcp = if trapped { "ECONNREFUSED" } else { "there" };
        assert_eq!(text(out), format!("there\n{tcp}\nthere\nENOENT\n"));
        assert_eq!(ended(&child), Exit::Code(0));
    }
}

#[test]
fn a_caller_that_dies_is_no_error() {
    if program("python3").is_none() {
        return;
    }
    let script = "import socket; socket.socket().bind(('127.0.0.1', 0))";
    let (mut plan, _out) = plan(&["python3", "-c", script]);
    if !prepare(&mut plan) {
        return;
    }
    let mut child = spawn(plan).unwrap();
    let listener = report(&mut child.exec).unwrap().notify.unwrap();
    raw::poll(&listener, libc::POLLIN, PATIENCE).unwrap();
    let bind = next(&listener);
    drop(Guard(child));
    let group = group();
    assert_eq!(
        listener.inject(&bind, group.fd(0)).unwrap(),
        Answer::Vanished
    );
    assert_eq!(
        listener.refuse(&bind, libc::EACCES).unwrap(),
        Answer::Vanished
    );
}
