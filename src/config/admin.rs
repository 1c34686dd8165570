//! `[supervisor] admin`: where rsup answers an outer orchestrator. There is no login, so an address
//! that other machines can reach must be allowed explicitly.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::cursor::{Context, Cursor};
use super::listen::{self, Placed};
use super::raw::{Bad, Kind, Table, Value};
use super::types::Listen;

pub(super) fn read(cx: &mut Context, table: &mut Cursor<'_>) -> Option<SocketAddr> {
    let address = table.take("admin");
    let public = table.get(cx, "admin_public", false, flag);
    let value = address?;
    match parse(cx, value) {
        Ok(address) if address.ip().is_loopback() || public => Some(address),
        Ok(address) => {
            let message =
                format!("`admin`: {address} can be reached from other machines, and has no login");
            let hint = format!(
                "write \"127.0.0.1:{}\", or add `admin_public = true` if that is what you want",
                address.port()
            );
            cx.error(value.bad(message).hint(hint));
            None
        }
        Err(bad) => {
            cx.error(Bad {
                message: format!("`admin`: {}", bad.message),
                ..bad
            });
            None
        }
    }
}

/// A bare port is on this machine alone, unlike in `listen`.
fn parse(cx: &mut Context, value: &Value) -> Result<SocketAddr, Bad> {
    let address = listen::tcp_address(cx, value)?;
    let bare = match &value.kind {
        Kind::Int(_) => true,
        Kind::String(text) => text.trim().bytes().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    Ok(if bare {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    })
}

fn flag(value: &Value) -> Result<bool, Bad> {
    match value.kind {
        Kind::Bool(flag) => Ok(flag),
        _ => Err(value.expected("true or false")),
    }
}

/// Reports an app with the same address.
pub(super) fn overlaps(cx: &mut Context, root: &Table, admin: Option<SocketAddr>, apps: &[Placed]) {
    let Some(addr) = admin else { return };
    let admin = Listen::Tcp { addr, v6only: true };
    let Some(taken) = apps
        .iter()
        .find(|placed| listen::collide(&placed.listen, &admin))
    else {
        return;
    };
    let message = format!("`{}` is the address of `admin` as well", taken.listen);
    let bad = Bad {
        span: taken.span.clone(),
        message,
        hint: None,
    };
    let problem = cx.problem(bad.hint("give one of them another port"));
    let place = root
        .get("supervisor")
        .and_then(|entry| match &entry.value.kind {
            Kind::Table(table) => table.get("admin"),
            _ => None,
        });
    cx.push(match place {
        Some(entry) => problem.also(entry.value.span.clone(), "`admin`"),
        None => problem,
    });
}
