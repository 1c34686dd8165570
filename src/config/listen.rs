//! Addresses to listen on: their syntax, and which of them conflict.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use super::cursor::Context;
use super::raw::{Bad, Kind, Span, Value};
use super::types::{AppName, Listen};
use crate::sys::needs::V6;

/// Longest path of a unix socket, without the closing NUL.
const UNIX_PATH_MAX: usize = 107;
const HINT: &str = "write 3001, \"127.0.0.1:3001\", \"[::1]:3001\" or \"unix:/run/api.sock\"";

/// An address and its place in the text, to compare it with all others of the file.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub app: AppName,
    pub listen: Listen,
    pub span: Span,
}

/// One address as written, before the app's other addresses are known.
struct Written {
    listen: Listen,
    span: Span,
    /// `[::]:3001`, which leaves `0.0.0.0:3001` to another socket; a bare port is for both
    /// families.
    explicit_v6_any: bool,
}

/// The value of `listen`: one address or a list.
pub(super) fn read(cx: &mut Context, value: Option<&Value>) -> Vec<(Listen, Span)> {
    let items = match value {
        None => &[],
        Some(Value {
            kind: Kind::Array(items),
            ..
        }) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let mut written = Vec::new();
    for item in items {
        match one(cx, item) {
            Ok(address) => written.push(address),
            Err(bad) => cx.error(Bad {
                message: format!("`listen`: {}", bad.message),
                ..bad
            }),
        }
    }
    let v4_any: Vec<u16> = written
        .iter()
        .filter_map(|w| w.listen.tcp())
        .filter(|addr| addr.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        .map(|addr| addr.port())
        .collect();
    for w in &mut written {
        if let Listen::Tcp { addr, v6only } = &mut w.listen
            && w.explicit_v6_any
            && v4_any.contains(&addr.port())
        {
            *v6only = true;
        }
    }
    written.into_iter().map(|w| (w.listen, w.span)).collect()
}

/// One TCP address, where no other kind is allowed.
pub(super) fn tcp_address(cx: &mut Context, value: &Value) -> Result<SocketAddr, Bad> {
    let written = one(cx, value)?;
    written.listen.tcp().ok_or_else(|| {
        value
            .bad("a unix socket will not do here")
            .hint("write \"127.0.0.1:9700\"")
    })
}

fn one(cx: &mut Context, value: &Value) -> Result<Written, Bad> {
    let span = value.span.clone();
    let (listen, explicit_v6_any) = match &value.kind {
        Kind::Int(n) => (any(cx, value, port_number(value, *n)?), false),
        Kind::String(text) => text_address(cx, value, text.trim())?,
        _ => return Err(value.expected("an address").hint(HINT)),
    };
    Ok(Written {
        listen,
        span,
        explicit_v6_any,
    })
}

fn text_address(cx: &mut Context, value: &Value, text: &str) -> Result<(Listen, bool), Bad> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(cx, value, path).map(|listen| (listen, false));
    }
    if text.starts_with(['/', '.']) || text.ends_with(".sock") {
        return Err(value
            .bad(format!("`{text}` is not an address"))
            .hint(format!("write \"unix:{text}\" for a unix socket")));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return Err(value
            .bad(format!("an address has no `{scheme}://`"))
            .hint(format!("write \"{rest}\"")));
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok((any(cx, value, port(value, text)?), false));
    }
    if text.matches(':').count() > 1 && !text.starts_with('[') {
        return Err(without_brackets(value, text));
    }
    let Some((host, digits)) = split_port(text) else {
        return Err(without_port(value, text));
    };
    let port = port(value, digits)?;
    match host {
        "" | "*" => return Ok((any(cx, value, port), false)),
        "localhost" => return Ok((tcp(IpAddr::V4(Ipv4Addr::LOCALHOST), port), false)),
        _ => {}
    }
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return v6(value, inner, port);
    }
    match host.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_multicast() || ip.is_broadcast() => Err(value.bad(format!("`{host}` is not the address of one machine"))),
        Ok(ip) => Ok((tcp(IpAddr::V4(ip), port), false)),
        Err(_) if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            Err(value.bad(format!("`{host}` is not an IPv4 address")))
        }
        Err(_) => Err(value
            .bad(format!("`{host}` is a host name; rsup listens on addresses of this machine"))
            .hint(format!("write its address, or {port} for all addresses, or \"127.0.0.1:{port}\" for this machine only"))),
    }
}

fn v6(value: &Value, inner: &str, port: u16) -> Result<(Listen, bool), Bad> {
    let written = format!("[{inner}]:{port}");
    let Ok(addr) = written.parse::<SocketAddrV6>() else {
        let bad = value.bad(format!("`{inner}` is not an IPv6 address"));
        return Err(if inner.contains('%') {
            bad.hint("write the number of the interface after the %")
        } else {
            bad
        });
    };
    if let Some(v4) = addr.ip().to_ipv4_mapped() {
        return Err(value
            .bad("an IPv4 address in IPv6 clothes")
            .hint(format!("write \"{v4}:{port}\"")));
    }
    if addr.ip().is_multicast() {
        return Err(value.bad(format!("`{inner}` is not the address of one machine")));
    }
    let any = addr.ip().is_unspecified();
    Ok((
        Listen::Tcp {
            addr: SocketAddr::V6(addr),
            v6only: !any,
        },
        any,
    ))
}

fn tcp(ip: IpAddr, port: u16) -> Listen {
    Listen::Tcp {
        addr: SocketAddr::new(ip, port),
        v6only: false,
    }
}

/// The wildcard address, of both families where the machine has both.
fn any(cx: &mut Context, value: &Value, port: u16) -> Listen {
    let v4 = tcp(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    match cx.machine.ipv6 {
        V6::There => tcp(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        V6::Absent => v4,
        V6::Refused => {
            let bad = value.bad(format!("`listen`: a sandbox refuses IPv6 sockets here, so this is 0.0.0.0:{port}, IPv4 alone"));
            cx.warn(bad.hint(format!(
                "allow socket(AF_INET6) in the seccomp profile, or write \"0.0.0.0:{port}\""
            )));
            v4
        }
    }
}

/// Host and port, split at the colon that is not inside brackets.
fn split_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    (!port.contains(']') && !port.is_empty()).then_some((host, port))
}

fn without_brackets(value: &Value, text: &str) -> Bad {
    let bad = value.bad(format!("`{text}`: an IPv6 address needs brackets"));
    // `::1:3001` is a valid address, but `[::1]:3001` is meant.
    let split = text.rsplit_once(':').filter(|(host, port)| {
        host.parse::<Ipv6Addr>().is_ok() && port.len() > 1 && port.parse::<u16>().is_ok()
    });
    match split {
        Some((host, port)) => bad.hint(format!("write \"[{host}]:{port}\"")),
        None if text.parse::<Ipv6Addr>().is_ok() => bad.hint(format!("write \"[{text}]:3001\"")),
        None => bad.hint(HINT),
    }
}

fn without_port(value: &Value, text: &str) -> Bad {
    let bad = value.bad(format!("`{text}` has no port"));
    if text.is_empty() {
        return value.bad("an empty address").hint(HINT);
    }
    let host = text.trim_end_matches(':');
    if !text.contains(['.', ':', '[']) && host != "localhost" {
        return value
            .bad(format!("`{text}` is neither a port nor an address"))
            .hint(HINT);
    }
    bad.hint(format!("write \"{host}:3001\""))
}

fn port(value: &Value, digits: &str) -> Result<u16, Bad> {
    match digits.parse::<i64>() {
        Ok(n) if digits.bytes().all(|b| b.is_ascii_digit()) => port_number(value, n),
        _ => Err(value.bad(format!("`{digits}` is not a port")).hint(HINT)),
    }
}

fn port_number(value: &Value, n: i64) -> Result<u16, Bad> {
    match u16::try_from(n) {
        Ok(0) => Err(value
            .bad("port 0 means a port of the kernel's choice, which clients cannot know")
            .hint("choose a port from 1 to 65535")),
        Ok(port) => Ok(port),
        Err(_) => Err(value
            .bad(format!("{n} is not a port"))
            .hint("choose a port from 1 to 65535")),
    }
}

fn unix(cx: &Context, value: &Value, path: &str) -> Result<Listen, Bad> {
    let path = path.strip_prefix("//").map_or(path, |rest| rest);
    if path.is_empty() {
        return Err(value
            .bad("a unix socket without a path")
            .hint("write \"unix:/run/api.sock\""));
    }
    if path.contains('\0') {
        return Err(value.bad("a path cannot contain a NUL"));
    }
    if path.starts_with('@') {
        return Err(value
            .bad("abstract unix sockets are not supported")
            .hint("write the path of a file: \"unix:/run/api.sock\""));
    }
    let full: PathBuf = cx.base.join(path).components().collect();
    let length = full.as_os_str().len();
    if length > UNIX_PATH_MAX {
        let message = format!(
            "{} has {length} bytes; the path of a unix socket has {UNIX_PATH_MAX} at most",
            full.display()
        );
        return Err(value.bad(message));
    }
    Ok(Listen::Unix(full))
}

/// Reports every address that another one, written before it, already covers.
pub(super) fn overlaps(cx: &mut Context, all: &[Placed]) {
    for (i, later) in all.iter().enumerate() {
        let Some(earlier) = all[..i]
            .iter()
            .find(|earlier| collide(&earlier.listen, &later.listen))
        else {
            continue;
        };
        let message = if earlier.listen == later.listen {
            format!("`{}` is listed twice", later.listen)
        } else {
            format!("`{}` overlaps with `{}`", later.listen, earlier.listen)
        };
        let bad = Bad {
            span: later.span.clone(),
            message,
            hint: None,
        };
        let bad = if earlier.app != later.app {
            bad.hint("two apps cannot share an address; give one of them another port")
        } else if earlier.listen == later.listen {
            bad.hint("leave one out")
        } else if later.listen.tcp().is_some_and(|addr| addr.ip().is_ipv4())
            && earlier.listen.tcp().is_some_and(|addr| addr.is_ipv6())
        {
            bad.hint("the first takes IPv4 as well; leave the second out")
        } else {
            bad.hint("the wider one takes the connections of both; leave the other out")
        };
        let label = if earlier.app == later.app {
            "also here".to_owned()
        } else {
            format!("app `{}`", earlier.app)
        };
        let problem = cx.problem(bad).also(earlier.span.clone(), label);
        cx.push(problem);
    }
}

/// Whether one of two addresses would take connections that are meant for the other.
pub(super) fn collide(a: &Listen, b: &Listen) -> bool {
    match (a, b) {
        (Listen::Unix(a), Listen::Unix(b)) => a == b,
        (
            Listen::Tcp {
                addr: a,
                v6only: a_only,
            },
            Listen::Tcp {
                addr: b,
                v6only: b_only,
            },
        ) => {
            let covers = |a: &SocketAddr, only: bool, b: &SocketAddr| {
                a.ip() == b.ip()
                    || a.ip().is_unspecified()
                        && (a.is_ipv4() == b.is_ipv4() || a.is_ipv6() && !only)
            };
            a.port() == b.port() && (covers(a, *a_only, b) || covers(b, *b_only, a))
        }
        _ => false,
    }
}
