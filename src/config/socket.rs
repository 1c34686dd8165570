//! `[app.NAME.socket]`: owner, group and mode of an app's unix socket files. Names become numbers
//! here, as those of `user` do.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{getegid, geteuid, getgroups};

use super::cursor::{Context, Cursor};
use super::raw::{Bad, Kind, Span, Value};
use super::types::{Listen, Named, RunAs, SocketSpec};
use super::{keys, user};

/// connect(2) needs the permission to write (unix(7)).
const MAY_CONNECT: u32 = 0o222;

/// Reads the table. `umask` and `run_as` are the app's: they give the values that the table leaves
/// out, as the app's own bind(2) would.
pub(super) fn read(
    cx: &mut Context,
    app: &mut Cursor<'_>,
    listen: &[(Listen, Span)],
    run_as: Option<&RunAs>,
    umask: Option<u32>,
) -> SocketSpec {
    let text = cx.source.clone();
    let mut c = app.sub(cx, "socket", &keys::SOCKET);
    let mode = c.maybe(cx, "mode", |value| {
        mode(value, text.text.get(value.span.clone()).unwrap_or_default())
    });
    let owner = c.maybe(cx, "owner", owner).map(|account| Named {
        name: account.name,
        id: account.uid,
    });
    let group = c
        .maybe(cx, "group", user::group)
        .map(|(name, id)| Named { name, id });
    let any = listen.iter().any(|(listen, _)| listen.tcp().is_none());
    if let (false, Some(value)) = (
        any,
        ["mode", "owner", "group"]
            .into_iter()
            .find_map(|key| c.take(key)),
    ) {
        let bad =
            value.bad("`socket` is about the files of unix sockets, and the app listens on none");
        cx.warn(bad.hint("write `listen = \"unix:/run/api.sock\"`, or leave it out"));
    }
    if !cx.machine.privileged {
        if let (Some(owner), Some(value)) = (
            owner
                .as_ref()
                .filter(|owner| owner.id != geteuid().as_raw()),
            c.take("owner"),
        ) {
            let bad = value.bad(format!(
                "only a root rsup can give a socket to `{}`",
                owner.name
            ));
            cx.warn(bad.hint("start it with `sudo rsup start`, or leave `owner` out"));
        }
        let mine = |gid: u32| {
            gid == getegid().as_raw()
                || getgroups().is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == gid))
        };
        if let (Some(group), Some(value)) = (
            group.as_ref().filter(|group| !mine(group.id)),
            c.take("group"),
        ) {
            let bad = value.bad(format!(
                "an rsup that is not root and not in the group `{0}` cannot give a socket to `{0}`",
                group.name
            ));
            cx.warn(bad.hint(format!(
                "start it with `sudo rsup start`, or join the group: usermod -aG {} …",
                group.name
            )));
        }
    }
    c.finish(cx);
    let others = mode
        .or_else(|| umask.map(|mask| 0o777 & !mask))
        .unwrap_or(0);
    let gid = group
        .as_ref()
        .map(|group| group.id)
        .or_else(|| run_as.map(|who| who.gid));
    for (listen, span) in listen {
        let Listen::Unix(path) = listen else { continue };
        if let Some((folder, why)) = path.parent().and_then(|parent| closed(parent, others, gid)) {
            let message = format!(
                "{folder} {why}, so they cannot connect to {} whatever its own mode",
                path.display()
            );
            let bad = Bad {
                span: span.clone(),
                message,
                hint: None,
            };
            cx.warn(bad.hint(format!(
                "open it, for instance `chmod o+x {folder}`, or put the socket elsewhere"
            )));
        }
    }
    SocketSpec { mode, owner, group }
}

/// The first folder of the path that excludes users whom the socket's own mode admits, and how.
fn closed(parent: &Path, mode: u32, gid: Option<u32>) -> Option<(String, String)> {
    let (to_others, to_group) = (mode & 0o002 != 0, mode & 0o020 != 0);
    // From the root on; a folder that does not exist is reported when the socket is made.
    let mut folders: Vec<&Path> = parent
        .ancestors()
        .filter(|folder| *folder != OsStr::new(""))
        .collect();
    folders.reverse();
    folders.into_iter().find_map(|folder| {
        let found = folder.metadata().ok()?;
        let enters = found.permissions().mode() & 0o777;
        if enters & 0o001 != 0 || !(to_others || to_group) {
            return None;
        }
        let of_group = enters & 0o010 != 0 && gid == Some(found.gid());
        let who = match (to_others, to_group, of_group) {
            (true, ..) => "users other than its owner and group",
            (false, true, false) => "the socket's group",
            (false, ..) => return None,
        };
        let whose = format!(
            "(mode {enters:04o}, owner {}, group {})",
            found.uid(),
            found.gid()
        );
        Some((
            folder.display().to_string(),
            format!("{whose} lets {who} not in"),
        ))
    })
}

fn owner(value: &Value) -> Result<user::Account, Bad> {
    user::account(value).map_err(|bad| Bad {
        hint: bad.hint.map(|hint| hint.replace("`user = ", "`owner = ")),
        ..bad
    })
}

fn mode(value: &Value, text: &str) -> Result<u32, Bad> {
    const HINT: &str = "write it in octal, in quotes: \"0660\"";
    let digits = match &value.kind {
        Kind::String(text) => text
            .trim()
            .strip_prefix("0o")
            .unwrap_or(text.trim())
            .to_owned(),
        // An integer without `0o` would be decimal, which is never meant.
        Kind::Int(number) if text.starts_with("0o") => format!("{number:o}"),
        Kind::Int(number) => {
            return Err(value
                .bad(format!("{number} is a decimal number here"))
                .hint(format!("write \"{number:04}\"")));
        }
        _ => return Err(value.expected("a mode").hint(HINT)),
    };
    let octal = !digits.is_empty()
        && digits.len() <= 4
        && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(&digits, 8)
        .ok()
        .filter(|mode| octal && *mode <= 0o777);
    let mode = mode.ok_or_else(|| {
        value
            .bad(format!("`{digits}` is not the mode of a socket"))
            .hint(HINT)
    })?;
    if mode & MAY_CONNECT == 0 {
        let bad =
            value.bad("with this mode no client can connect: that needs the permission to write");
        return Err(bad.hint("write \"0660\" for owner and group, \"0666\" for everybody"));
    }
    Ok(mode)
}
