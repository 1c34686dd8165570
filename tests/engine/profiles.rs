//! What the profiles of other engines, and of other versions, refuse.

use crate::container::{Container, folder};
use crate::engine::engine;
use crate::life::live;
use crate::profile;

fn under(refused: &[&str], user: &str, uid: u32) {
    let Some(engine) = engine() else { return };
    let folder = folder(&engine);
    let profile = profile::write(&folder, "profile.json", refused);
    let container = Container::run(
        &engine,
        &[
            "--user",
            user,
            "--security-opt",
            &format!("seccomp={}", profile.display()),
        ],
    );
    live(&container, uid);
}

/// podman, CRI-O.
#[test]
fn podman_allows_both_calls() {
    under(&[], "node", 1000);
}

/// Docker since 23.0, containerd since 1.7, Kubernetes with RuntimeDefault.
#[test]
fn docker_refuses_pidfd_getfd() {
    under(&["pidfd_getfd"], "node", 1000);
}

#[test]
fn docker_of_old_refuses_process_vm_readv_too() {
    under(
        &[
            "pidfd_getfd",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
        "node",
        1000,
    );
}

#[test]
fn docker_of_old_refuses_it_to_root() {
    under(
        &[
            "pidfd_getfd",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
        "root",
        0,
    );
}

/// Profiles that are older than the calls.
#[test]
fn a_profile_that_knows_no_pidfd() {
    under(
        &[
            "pidfd_getfd",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
            "pidfd_send_signal",
            "close_range",
        ],
        "node",
        1000,
    );
}

#[test]
fn no_profile() {
    let Some(engine) = engine() else { return };
    live(
        &Container::run(&engine, &["--security-opt", "seccomp=unconfined"]),
        1000,
    );
}
