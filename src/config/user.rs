//! `user`, `group`, `groups` and `umask` of an app. Names become numbers here, in the caller's
//! process, and stay so for the life of the revision. The daemon never looks a name up: that may
//! take long (a directory server), and the name may have another owner by then.

use std::path::PathBuf;

use nix::unistd::geteuid;

use super::accounts::{Group, User, groups_of};
use super::cursor::{Context, Cursor};
use super::raw::{Bad, Kind, Value};
use super::suggest;
use super::types::{AppSpec, RunAs};

/// An entry of the account database, or a bare number.
pub(super) struct Account {
    pub name: String,
    pub uid: u32,
    /// `None` for a number without an entry.
    gid: Option<u32>,
    home: PathBuf,
    shell: PathBuf,
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Self {
            name: user.name,
            uid: user.uid,
            gid: Some(user.gid),
            home: user.home,
            shell: user.shell,
        }
    }
}

/// Reads the user that the workers of an app run as, if the app names one.
pub(super) fn read(cx: &mut Context, app: &mut Cursor<'_>) -> Option<RunAs> {
    let account = app.maybe(cx, "user", account);
    let group = app.maybe(cx, "group", group);
    let groups = app.maybe(cx, "groups", groups);
    let at = ["user", "group", "groups"]
        .into_iter()
        .find_map(|key| app.take(key))?;
    let chosen = match (account, app.take("user")) {
        (Some(account), _) => account,
        // The value is wrong, and already reported.
        (None, Some(_)) => return None,
        (None, None) => own_account(),
    };
    let Some(gid) = group.as_ref().map(|(_, gid)| *gid).or(chosen.gid) else {
        let message = format!(
            "user {} is not in the system's database, so its group is not known",
            chosen.name
        );
        cx.error(at.bad(message).hint("say it: `group = …`"));
        return None;
    };
    if !cx.machine.privileged && chosen.uid != geteuid().as_raw() {
        let message = format!("only a root rsup can run workers as `{}`", chosen.name);
        cx.warn(
            at.bad(message)
                .hint("start it with `sudo rsup start`, or leave `user` out"),
        );
    }
    let groups = groups.unwrap_or_else(|| groups_of(&chosen.name, gid));
    let group = group.map_or_else(|| name_of_group(gid), |(name, _)| name);
    Some(RunAs {
        user: chosen.name,
        group,
        uid: chosen.uid,
        gid,
        groups,
        home: chosen.home,
        shell: chosen.shell,
    })
}

/// Looks the user up again, as a reload does.
pub(super) fn again(spec: &mut AppSpec) -> Result<(), String> {
    let Some(run_as) = &spec.run_as else {
        return Ok(());
    };
    let value = Value {
        kind: Kind::String(run_as.user.clone()),
        span: 0..0,
    };
    let account = account(&value).map_err(|bad| bad.message)?;
    let gid = account.gid.unwrap_or(run_as.gid);
    let groups = groups_of(&account.name, gid);
    let group = name_of_group(gid);
    spec.run_as = Some(RunAs {
        user: account.name,
        group,
        uid: account.uid,
        gid,
        groups,
        home: account.home,
        shell: account.shell,
    });
    Ok(())
}

fn own_account() -> Account {
    let uid = geteuid().as_raw();
    User::by_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| nameless(uid), Account::from)
}

fn nameless(uid: u32) -> Account {
    Account {
        name: uid.to_string(),
        uid,
        gid: None,
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

pub(super) fn account(value: &Value) -> Result<Account, Bad> {
    let failed = |why| value.bad(format!("the system's users cannot be looked up: {why}"));
    if let Some(number) = value.as_int() {
        let uid = id(value, number, "user")?;
        return Ok(User::by_uid(uid)
            .map_err(failed)?
            .map_or_else(|| nameless(uid), Account::from));
    }
    let Some(name) = value.as_str() else {
        return Err(value
            .expected("the name of a user")
            .hint("write `user = \"www-data\"`"));
    };
    if let Some((user, group)) = name.split_once(':') {
        let hint = format!("write `user = {user:?}` and `group = {group:?}`");
        return Err(value
            .bad(format!("`{name}` is not the name of a user"))
            .hint(hint));
    }
    if name.is_empty() || name.contains('\0') {
        return Err(value.bad("not the name of a user"));
    }
    let found = User::by_name(name).map_err(failed)?;
    found
        .map(Account::from)
        .ok_or_else(|| unknown(value, "user", name, "/etc/passwd", "useradd --system"))
}

pub(super) fn group(value: &Value) -> Result<(String, u32), Bad> {
    let failed = |why| value.bad(format!("the system's groups cannot be looked up: {why}"));
    if let Some(number) = value.as_int() {
        let gid = id(value, number, "group")?;
        return Ok((name_of_group(gid), gid));
    }
    let Some(name) = value.as_str() else {
        return Err(value
            .expected("the name of a group")
            .hint("write \"www-data\""));
    };
    if name.is_empty() || name.contains('\0') {
        return Err(value.bad("not the name of a group"));
    }
    let found = Group::by_name(name).map_err(failed)?;
    found
        .map(|group| (group.name, group.gid))
        .ok_or_else(|| unknown(value, "group", name, "/etc/group", "groupadd"))
}

fn groups(value: &Value) -> Result<Vec<u32>, Bad> {
    let Kind::Array(items) = &value.kind else {
        return Err(value
            .expected("a list of groups")
            .hint("write `groups = [\"video\", \"redis\"]`, or [] for none"));
    };
    items
        .iter()
        .map(|item| group(item).map(|(_, gid)| gid))
        .collect()
}

/// Checks an id: to the kernel -1 means "unchanged" (setresuid(2)).
fn id(value: &Value, number: i64, what: &str) -> Result<u32, Bad> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| value.bad(format!("{number} is not the number of a {what}")))
}

fn unknown(value: &Value, what: &str, name: &str, file: &str, make: &str) -> Bad {
    let bad = value.bad(format!("there is no {what} `{name}` on this machine"));
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let known: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    bad.hint(match suggest::nearest(name, &known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("make it first: {make} {name}"),
    })
}

fn name_of_group(gid: u32) -> String {
    Group::by_gid(gid)
        .ok()
        .flatten()
        .map_or_else(|| gid.to_string(), |group| group.name)
}

/// Reads an octal mask, as chmod(1) does: `"027"`, or TOML's own `0o027`.
pub(super) fn umask(value: &Value, text: &str) -> Result<u32, Bad> {
    const HINT: &str = "write it in octal, in quotes: \"027\"";
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
                .hint(format!("write \"{number:03}\"")));
        }
        _ => return Err(value.expected("a umask").hint(HINT)),
    };
    let octal = !digits.is_empty()
        && digits.len() <= 4
        && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mask = u32::from_str_radix(&digits, 8)
        .ok()
        .filter(|mask| octal && *mask <= 0o777);
    let mask = mask.ok_or_else(|| value.bad(format!("`{digits}` is not a umask")).hint(HINT))?;
    if mask & 0o700 != 0 {
        return Err(value
            .bad("such a umask keeps the worker from using its own files")
            .hint("the first digit is 0: \"027\""));
    }
    Ok(mask)
}
