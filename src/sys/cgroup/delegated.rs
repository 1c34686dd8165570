//! The part of the cgroup tree that rsup may use: its own cgroup, if the manager of the machine's
//! tree has delegated it (cgroup-v2.rst, "Delegation").

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{SUPERVISOR, write};

/// The place where rsup's tree begins.
pub(super) struct Delegated {
    /// The cgroup that is delegated to rsup.
    pub own: PathBuf,
    /// This process is in a leaf below it already: rsup's, from an earlier life, or one that
    /// systemd made.
    pub aside: bool,
}

/// The root of the first mount of cgroup2 within the hierarchy, and where it is mounted.
pub(super) fn mount() -> Option<(PathBuf, PathBuf)> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// proc_pid_mountinfo(5): id, parent, device, root, mount point, …, `-`, type, …
pub(super) fn parse_mounts(text: &str) -> Option<(PathBuf, PathBuf)> {
    text.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        // A blank in a path would be written as \040; cgroups are not mounted at such paths.
        (after.split(' ').next() == Some("cgroup2")).then(|| (root.into(), point.into()))
    })
}

/// The folder of the cgroup named in a file such as `/proc/self/cgroup`.
pub(super) fn folder_of(file: &str, root: &Path, point: &Path) -> Option<PathBuf> {
    folder_in(&fs::read_to_string(file).ok()?, root, point)
}

/// The line of v2 begins with `0::`.
pub(super) fn folder_in(text: &str, root: &Path, point: &Path) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // `/..`: outside of this process's cgroup namespace. ` (deleted)`: it is gone.
    if path.starts_with("/..") || path.ends_with(" (deleted)") {
        return None;
    }
    let below = Path::new(path).strip_prefix(root).ok()?;
    Some(if below.as_os_str().is_empty() {
        point.to_owned()
    } else {
        point.join(below)
    })
}

pub(super) fn find(name: &str) -> Result<Delegated, String> {
    let (root, point) = mount().ok_or("cgroup v2 is not mounted here")?;
    let own = folder_of("/proc/self/cgroup", &root, &point)
        .ok_or("rsup's own cgroup is not visible here")?;
    if own.ends_with(Path::new(name).join(SUPERVISOR))
        && let Some(above) = own.ancestors().nth(2)
    {
        return Ok(Delegated {
            own: above.to_owned(),
            aside: true,
        });
    }
    // systemd's DelegateSubgroup= puts rsup into a leaf of the delegated cgroup; control processes
    // get one too.
    let above = match own.parent() {
        Some(above) if above.starts_with(&point) && !is_marked(&own) && is_marked(above) => {
            Some(above.to_owned())
        }
        // Some managers of users do not mark what they delegate.
        _ => controlled(&own)
            .or_else(|| below_service(&own, SUPERVISOR))
            .map(Path::to_owned),
    };
    let (own, aside) = above.map_or((own, false), |above| (above, true));
    for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
        let file = if file.is_empty() {
            own.clone()
        } else {
            own.join(file)
        };
        if nix::unistd::access(&file, nix::unistd::AccessFlags::W_OK).is_err() {
            return Err(format!(
                "{} is not delegated to rsup (Delegate=yes in a systemd unit does that)",
                own.display()
            ));
        }
    }
    // Root may write everywhere: where systemd manages the tree, that alone means nothing.
    let root_user = nix::unistd::geteuid().is_root();
    if root_user && own != point && Path::new("/run/systemd/system").exists() && !is_marked(&own) {
        return Err(format!(
            "systemd has not delegated {} to rsup (Delegate=yes in its unit does that)",
            own.display()
        ));
    }
    Ok(Delegated { own, aside })
}

/// The service whose cgroup for control processes this is (systemd: `EXEC_CONTROL_CGROUP` in
/// src/core/execute.h).
pub(super) fn controlled(own: &Path) -> Option<&Path> {
    below_service(own, ".control")
}

/// The cgroup of a service, if `own` is the one of this name below it.
pub(super) fn below_service<'a>(own: &'a Path, name: &str) -> Option<&'a Path> {
    let is_service = |above: &&Path| above.extension().is_some_and(|end| end == "service");
    own.parent()
        .filter(|above| own.ends_with(name) && is_service(above))
}

/// Whether systemd has marked it as delegated.
fn is_marked(folder: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(folder.as_os_str().as_bytes()) else {
        return false;
    };
    [c"user.delegate", c"trusted.delegate"]
        .into_iter()
        .any(|name| {
            let mut value = [0u8; 4];
            // SAFETY: two strings that end with a zero, and a buffer with its length.
            let length = unsafe {
                libc::getxattr(
                    path.as_ptr(),
                    name.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            length == 1 && value.first() == Some(&b'1')
        })
}

/// Moves rsup's own processes from one cgroup to another: this one, and those that run the same
/// program (its keeper, the command line that started it). Others stay.
pub(super) fn move_own(from: &Path, to: &Path) -> io::Result<()> {
    let me = std::process::id();
    let program =
        |pid: u32| fs::metadata(format!("/proc/{pid}/exe")).map(|found| (found.dev(), found.ino()));
    let mine = program(me)?;
    let text = fs::read_to_string(from.join("cgroup.procs"))?;
    for pid in text.lines().filter_map(|line| line.parse::<u32>().ok()) {
        if pid != me && program(pid).is_ok_and(|other| other == mine) {
            // It may have ended meanwhile.
            let _ = write(&to.join("cgroup.procs"), &pid.to_string());
        }
    }
    write(&to.join("cgroup.procs"), "0")
}

/// The processes that prevent controllers from being enabled in a cgroup.
pub(super) fn who_is_in(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let name = |pid: &str| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .map(|name| crate::human::one_line(name.trim()).into_owned())
    };
    match text.lines().next() {
        Some(pid) => {
            let name = name(pid).unwrap_or_else(|_| "?".into());
            format!(
                "process {pid} ({name}) is in it, and only a cgroup without processes can have them"
            )
        }
        None => "it is busy".to_owned(),
    }
}
