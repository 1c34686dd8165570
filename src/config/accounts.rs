//! The users and groups of the machine: `/etc/passwd` and `/etc/group`, parsed here, and what
//! getent(1) finds in other sources.
//!
//! The C library's calls (getpwnam(3) and the like) load the modules that nsswitch.conf(5) names
//! into the process. A statically linked program cannot do that safely: the modules need exactly
//! the version of the C library that the program was linked with. getent(1) belongs to the machine
//! and loads its own. So both builds of rsup find the same accounts, also where there is no C
//! library.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An entry of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    pub shell: PathBuf,
}

/// An entry of group(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
    members: Vec<String>,
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const NSSWITCH: &str = "/etc/nsswitch.conf";
/// By absolute path: the caller may be root, and `PATH` may lead anywhere.
const GETENT: [&str; 2] = ["/usr/bin/getent", "/bin/getent"];

impl User {
    /// The user of that name; `None` where there is none.
    ///
    /// # Errors
    /// When `/etc/passwd` is there and cannot be read.
    pub fn by_name(name: &str) -> io::Result<Option<Self>> {
        Self::find(name, |user| user.name == name)
    }

    /// The user with that number. Errors as of [`Self::by_name`].
    pub fn by_uid(uid: u32) -> io::Result<Option<Self>> {
        Self::find(&uid.to_string(), |user| user.uid == uid)
    }

    fn find(key: &str, is_it: impl Fn(&Self) -> bool) -> io::Result<Option<Self>> {
        let local = text_of(Path::new(PASSWD))?;
        // getent reads a name of digits as a number, so its answer is compared as well.
        let found = |text: &str| text.lines().filter_map(Self::parse).find(&is_it);
        Ok(found(&local).or_else(|| found(&elsewhere("passwd", key)?)))
    }

    /// `name:password:uid:gid:gecos:home:shell`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = entry(line)?;
        let name = fields.next()?.to_owned();
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields
            .nth(1)
            .filter(|home| !home.is_empty())
            .unwrap_or("/")
            .into();
        // passwd(5): an empty one means /bin/sh.
        let shell = fields
            .next()
            .filter(|shell| !shell.is_empty())
            .unwrap_or("/bin/sh")
            .into();
        Some(Self {
            name,
            uid,
            gid,
            home,
            shell,
        })
    }
}

impl Group {
    /// The group of that name; `None` where none has it.
    ///
    /// # Errors
    /// When `/etc/group` is there and cannot be read.
    pub fn by_name(name: &str) -> io::Result<Option<Self>> {
        Self::find(name, |group| group.name == name)
    }

    /// The group with that number. Errors as of [`Self::by_name`].
    pub fn by_gid(gid: u32) -> io::Result<Option<Self>> {
        Self::find(&gid.to_string(), |group| group.gid == gid)
    }

    fn find(key: &str, is_it: impl Fn(&Self) -> bool) -> io::Result<Option<Self>> {
        let local = text_of(Path::new(GROUP))?;
        let found = |text: &str| text.lines().filter_map(Self::parse).find(&is_it);
        Ok(found(&local).or_else(|| found(&elsewhere("group", key)?)))
    }

    /// `name:password:gid:member,member`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = entry(line)?;
        let name = fields.next()?.to_owned();
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields
            .next()
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        Some(Self {
            name,
            gid,
            members: members.map(str::to_owned).collect(),
        })
    }
}

/// The groups of a user, as initgroups(3) would set them: `gid` and those that list the user.
pub fn groups_of(user: &str, gid: u32) -> Vec<u32> {
    let local = text_of(Path::new(GROUP)).unwrap_or_default();
    let member = |group: &Group| group.members.iter().any(|name| name == user);
    let mut groups = vec![gid];
    groups.extend(
        local
            .lines()
            .filter_map(Group::parse)
            .filter(member)
            .map(|group| group.gid),
    );
    // `initgroups` in nsswitch.conf, or in its absence `group`, decides the sources.
    if let Some(text) = elsewhere("initgroups", user) {
        // `name 4 24 27`.
        groups.extend(
            text.split_whitespace()
                .skip(1)
                .filter_map(|number| number.parse::<u32>().ok()),
        );
    }
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The fields of a line; `None` for a line of `+` or `-`, which stands for entries of NIS, and for
/// a comment (`#`).
fn entry(line: &str) -> Option<std::str::Split<'_, char>> {
    let line = line.trim();
    (!line.is_empty() && !line.starts_with(['#', '+', '-'])).then(|| line.split(':'))
}

/// The text of a file; empty on a machine without it, as in a container with only a program.
fn text_of(path: &Path) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// What getent(1) answers for a key, where nsswitch.conf names more than the files.
fn elsewhere(database: &str, key: &str) -> Option<String> {
    let switch = text_of(Path::new(NSSWITCH)).unwrap_or_default();
    if !beyond_files(&switch, database) {
        return None;
    }
    let program = GETENT.iter().find(|program| Path::new(program).exists())?;
    let output = Command::new(program)
        .args([database, "--", key])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether nsswitch.conf(5) has sources for a database beyond the files.
fn beyond_files(switch: &str, database: &str) -> bool {
    let sources = |wanted: &str| {
        switch.lines().find_map(|line| {
            let (name, sources) = line.split('#').next()?.split_once(':')?;
            (name.trim() == wanted).then_some(sources)
        })
    };
    let sources = sources(database).or_else(|| {
        if database == "initgroups" {
            sources("group")
        } else {
            None
        }
    });
    // `[SUCCESS=merge]` and the like are actions, not sources.
    let named = sources
        .unwrap_or_default()
        .split_whitespace()
        .filter(|word| !word.starts_with('[') && !word.ends_with(']'));
    named.into_iter().any(|source| source != "files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_manual_pages_have_them() {
        let user =
            User::parse("www-data:x:33:34:www:/var/www:/usr/sbin/nologin").expect("an entry");
        assert_eq!(
            (user.name.as_str(), user.uid, user.gid),
            ("www-data", 33, 34)
        );
        assert_eq!(
            (user.home.as_path(), user.shell.as_path()),
            (Path::new("/var/www"), Path::new("/usr/sbin/nologin"))
        );
        let short = User::parse("a:x:1:2:::").expect("an entry");
        assert_eq!(
            (short.home.as_path(), short.shell.as_path()),
            (Path::new("/"), Path::new("/bin/sh"))
        );
        for line in [
            "",
            "# a:x:1:2:::",
            "+",
            "+a:x:1:2:::",
            "a:x:one:2:::",
            "a:x:1",
            "a:x:-1:2:::",
            "a:x:4294967296:2:::",
        ] {
            assert_eq!(User::parse(line), None, "{line}");
        }
        let group = Group::parse("video:x:44:ann,bob").expect("an entry");
        assert_eq!((group.name.as_str(), group.gid), ("video", 44));
        assert_eq!(group.members, ["ann", "bob"]);
        assert_eq!(
            Group::parse("wheel:x:10:").expect("an entry").members,
            Vec::<String>::new()
        );
        assert_eq!(
            Group::parse("wheel:x:10").expect("an entry").members,
            Vec::<String>::new()
        );
    }

    #[test]
    fn getent_is_asked_only_where_it_can_know_more() {
        let debian =
            "passwd:         files systemd\ngroup: files [SUCCESS=merge] systemd\nshadow: files\n";
        assert!(
            beyond_files(debian, "passwd")
                && beyond_files(debian, "group")
                && beyond_files(debian, "initgroups")
        );
        let plain = "# passwd: ldap\npasswd: files # ldap\ngroup: files [NOTFOUND=return]\n";
        assert!(
            !beyond_files(plain, "passwd")
                && !beyond_files(plain, "group")
                && !beyond_files(plain, "initgroups")
        );
        assert!(!beyond_files("", "passwd"));
        assert!(!beyond_files(
            "initgroups: files\ngroup: files ldap",
            "initgroups"
        ));
        assert!(beyond_files("passwd: files ldap", "passwd"));
    }

    /// What the C library finds for every account of this machine is what is found here.
    #[test]
    fn accounts_are_those_of_the_c_library() {
        let text = text_of(Path::new(PASSWD)).expect("readable");
        for user in text.lines().filter_map(User::parse) {
            let theirs = nix::unistd::User::from_name(&user.name)
                .expect("asked")
                .expect("known");
            let same = User {
                name: theirs.name,
                uid: theirs.uid.as_raw(),
                gid: theirs.gid.as_raw(),
                home: theirs.dir,
                shell: theirs.shell,
            };
            assert_eq!(User::by_name(&user.name).expect("read"), Some(same));
            let name = std::ffi::CString::new(user.name.as_str()).expect("no NUL");
            let theirs = nix::unistd::getgrouplist(&name, nix::unistd::Gid::from_raw(user.gid))
                .expect("asked");
            let mut theirs: Vec<u32> = theirs.into_iter().map(nix::unistd::Gid::as_raw).collect();
            theirs.sort_unstable();
            theirs.dedup();
            assert_eq!(groups_of(&user.name, user.gid), theirs, "{}", user.name);
        }
        assert_eq!(User::by_name("nobody-has-this-name").expect("read"), None);
        assert_eq!(User::by_name("0").expect("read"), None);
        assert_eq!(
            Group::by_gid(0)
                .expect("read")
                .map(|group| group.name)
                .as_deref(),
            Some("root")
        );
    }
}
