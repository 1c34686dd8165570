use super::delegated::{folder_in, parse_mounts};
use super::*;

#[test]
fn where_we_are() {
    let mounts = "24 30 0:22 / /sys rw - sysfs sysfs rw\n\
                  35 24 0:30 /a /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    let (root, point) = parse_mounts(mounts).unwrap();
    assert_eq!(
        (root.as_path(), point.as_path()),
        (Path::new("/a"), Path::new("/sys/fs/cgroup"))
    );
    let folder = |text| folder_in(text, &root, &point);
    assert_eq!(
        folder("1:name=systemd:/x\n0::/a/b/c\n"),
        Some("/sys/fs/cgroup/b/c".into())
    );
    assert_eq!(folder("0::/a\n"), Some("/sys/fs/cgroup".into()));
    for outside in ["0::/../x", "0::/b", "1:cpu:/a", "", "0::/a/b (deleted)"] {
        assert_eq!(folder(outside), None, "{outside}");
    }
    assert_eq!(
        parse_mounts("25 30 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"),
        None
    );
}

#[test]
fn numbers_as_the_kernel_wants_them() {
    assert_eq!(cpu_max(1.5), "150000 100000");
    assert_eq!(cpu_max(0.01), "1000 100000");
    assert_eq!(cpu_max(0.001), "1000 100000");
    assert_eq!(
        Controllers::parse("cpuset cpu io memory hugetlb pids"),
        Controllers {
            memory: true,
            cpu: true,
            tasks: true
        }
    );
    assert_eq!(Controllers::parse("hugetlb cpuset"), Controllers::default());
}

#[test]
fn a_name_for_each_supervisor() {
    assert_eq!(name_for(Path::new("/run/rsup")), "rsup");
    assert_ne!(name_for(Path::new("/a")), name_for(Path::new("/b")));
    assert_eq!(name_for(Path::new("/a")), name_for(Path::new("/a")));
}

/// A plain folder in place of a cgroup: what is written to the kernel can be read from it.
fn imitation(controllers: &str) -> (tempfile::TempDir, Tree) {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().to_owned();
    let (controllers, refused) = (Controllers::parse(controllers), Controllers::default());
    (
        folder,
        Tree {
            own: base.clone(),
            base,
            aside: true,
            controllers,
            refused,
            lacks: None,
        },
    )
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let all = Bounds {
        memory: Some(1 << 20),
        cpu: Some(0.5),
        tasks: Some(10),
    };
    let (_folder, tree) = imitation("memory");
    let why = tree.lacking(&all).unwrap();
    assert!(why.contains("`cpu`, `pids`"), "{why}");
    assert_eq!(
        tree.lacking(&Bounds {
            memory: Some(1),
            ..Bounds::default()
        }),
        None
    );
    assert_eq!(tree.lacking(&Bounds::default()), None);
}

#[test]
fn a_folder_with_somebody_in_it_is_left_to_them() {
    let (folder, mut tree) = imitation("");
    let first = tree.worker("web", 7, &Bounds::default()).unwrap();
    assert_eq!(first.path(), folder.path().join("app.web/7"));
    // Empty, as to the kernel: made again.
    assert_eq!(tree.worker("web", 7, &Bounds::default()).unwrap(), first);
    fs::write(first.path().join("member"), "").unwrap();
    assert_eq!(
        tree.worker("web", 7, &Bounds::default()).unwrap().path(),
        folder.path().join("app.web/7.1")
    );
}

#[test]
fn events_and_members() {
    let (_folder, mut tree) = imitation("");
    let leaf = tree.worker("web", 1, &Bounds::default()).unwrap();
    assert_eq!((leaf.out_of_memory(), leaf.members()), (0, vec![]));
    fs::write(
        leaf.path().join("memory.events"),
        "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n",
    )
    .unwrap();
    fs::write(leaf.path().join("cgroup.procs"), "12\n0\n345\n").unwrap();
    assert_eq!((leaf.out_of_memory(), leaf.members()), (2, vec![12, 345]));
}

/// A control file with the kernel's text, which a test reads again after writes.
fn control(folder: &Path, text: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let file = folder.join("cgroup.subtree_control");
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn nothing_is_enabled_before_somebody_wants_a_limit() {
    let (folder, mut tree) = imitation("");
    let file = control(folder.path(), "");
    fs::write(
        folder.path().join("cgroup.controllers"),
        "cpu memory pids\n",
    )
    .unwrap();
    tree.worker("web", 1, &Bounds::default()).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
    // Available, as far as known.
    let bounds = Bounds {
        tasks: Some(9),
        ..Bounds::default()
    };
    assert_eq!(tree.lacking(&bounds), None);
    tree.provide(&bounds);
    assert_eq!(fs::read_to_string(&file).unwrap(), "+pids", "and no other");
    // This imitation refuses, and a refusal to one worker is remembered for others.
    tree.provide(&Bounds {
        cpu: Some(1.0),
        ..Bounds::default()
    });
    assert!(tree.lacking(&bounds).unwrap().contains("`pids`"));
    assert_eq!(
        tree.lacking(&Bounds {
            memory: Some(1),
            ..Bounds::default()
        }),
        None
    );
}

#[test]
fn the_limits_of_an_adopted_worker_are_set_again() {
    let (folder, mut tree) = imitation("memory pids");
    let app = folder.path().join("app.web");
    let enabled = control(&app, "pids\n");
    let leaf = Leaf {
        path: app.join("3"),
    };
    fs::create_dir(leaf.path()).unwrap();
    for file in ["memory.max", "pids.max"] {
        fs::write(leaf.path().join(file), "").unwrap();
    }
    let bounds = Bounds {
        memory: Some(1 << 20),
        tasks: Some(9),
        cpu: None,
    };
    assert!(
        tree.bound_again(&leaf, &bounds).unwrap(),
        "memory of before is not counted"
    );
    assert_eq!(fs::read_to_string(&enabled).unwrap(), "+memory");
    let read = |file: &str| fs::read_to_string(leaf.path().join(file)).unwrap();
    assert_eq!(
        (read("memory.max"), read("pids.max")),
        ("1048576".into(), "9".into())
    );
    // After an upgrade, or with systemd 254, everything is as it was.
    fs::write(&enabled, "memory pids\n").unwrap();
    assert!(!tree.bound_again(&leaf, &bounds).unwrap());
    assert_eq!(fs::read_to_string(&enabled).unwrap(), "memory pids\n");
    assert!(!tree.bound_again(&leaf, &Bounds::default()).unwrap());
    // A refusal is reported.
    fs::remove_file(leaf.path().join("pids.max")).unwrap();
    assert!(
        tree.bound_again(&leaf, &bounds)
            .unwrap_err()
            .to_string()
            .contains("pids.max")
    );
}

#[test]
fn a_worker_gets_limits_in_a_folder_that_is_there_already() {
    let (folder, mut tree) = imitation("memory");
    let enabled = control(&folder.path().join("app.web"), "");
    let bounds = Bounds {
        memory: Some(1),
        ..Bounds::default()
    };
    // A plain folder has no `memory.max`; the kernel makes that one when the controller is enabled.
    assert!(
        tree.worker("web", 1, &bounds)
            .unwrap_err()
            .to_string()
            .contains("memory.max")
    );
    assert_eq!(fs::read_to_string(enabled).unwrap(), "+memory");
}

#[test]
fn room_is_made_in_every_folder() {
    let folder = tempfile::tempdir().unwrap();
    let unit = control(folder.path(), "memory pids\n");
    let base = control(&folder.path().join("rsup"), "memory pids\n");
    let app = control(&folder.path().join("rsup/app.web"), "memory\n");
    let none = control(&folder.path().join("rsup/app.web/1"), "\n");
    // A cgroup that a worker has made for itself.
    let inner = control(&folder.path().join("rsup/app.web/1/own"), "cpu\n");
    make_room(folder.path()).unwrap();
    let read = |file: &PathBuf| fs::read_to_string(file).unwrap().trim_end().to_owned();
    assert_eq!(
        (read(&unit), read(&base)),
        ("-memory -pids".into(), "-memory -pids".into())
    );
    assert_eq!(
        (read(&app), read(&none), read(&inner)),
        ("-memory".into(), String::new(), "-cpu".into())
    );
    // Gone meanwhile.
    make_room(&folder.path().join("nothing")).unwrap();
}

#[test]
fn control_processes_know_their_service() {
    let own = Path::new("/sys/fs/cgroup/system.slice/rsup.service/.control");
    assert_eq!(delegated::controlled(own), own.parent());
    // As in a user's unit with DelegateSubgroup=.
    let leaf = own.with_file_name(SUPERVISOR);
    assert_eq!(
        (
            delegated::below_service(&leaf, SUPERVISOR),
            delegated::controlled(&leaf)
        ),
        (own.parent(), None)
    );
    for other in [
        "/sys/fs/cgroup/system.slice/rsup.service",
        "/sys/fs/cgroup/a/.control",
        "/sys/fs/cgroup/a.service/control",
    ] {
        assert_eq!(delegated::controlled(Path::new(other)), None, "{other}");
    }
}
