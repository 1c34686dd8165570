//! Seccomp profiles by what engines refuse, made of what their documentation says of them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::container::put;

/// What no default profile allows a container without capabilities: to change the kernel, the machine, mounts, clocks,
/// key rings and namespaces, and to trace the kernel.
const NEVER: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pivot_root",
    "process_madvise",
    "quotactl",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

/// The refused calls beyond those.
pub fn write(folder: &Path, name: &str, refused: &[&str]) -> PathBuf {
    let names: Vec<&str> = NEVER.iter().chain(refused).copied().collect();
    let profile: Value = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    put(folder, name, &profile.to_string());
    folder.join(name)
}
