use super::delegated::{folder_in, parse_mounts};
use super::*;

#[test]
fn where_we_are() {
    let mounts = "24 30 0:22 / /sys rw - sysfs sysfs rw\n\
                  35 24 0:30 /a /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    let (root, point) = parse_mounts(mounts).unwrap();
    assert_eq!((root.as_path(), point.as_path()), (Path::new("/a"), Path::new("/sys/fs/cgroup")));
    let folder = |text| folder_in(text, &root, &point);
    assert_eq!(folder("1:name=systemd:/x\n0::/a/b/c\n"), Some("/sys/fs/cgroup/b/c".into()));
    assert_eq!(folder("0::/a\n"), Some("/sys/fs/cgroup".into()));
    for outside in ["0::/../x", "0::/b", "1:cpu:/a", "", "0::/a/b (deleted)"] {
        assert_eq!(folder(outside), None, "{outside}");
    }
    assert_eq!(parse_mounts("25 30 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
}

#[test]
fn numbers_as_the_kernel_wants_them() {
    assert_eq!(cpu_max(1.5), "150000 100000");
    assert_eq!(cpu_max(0.01), "1000 100000");
    assert_eq!(cpu_max(0.001), "1000 100000");
    assert_eq!(Controllers::parse("cpuset cpu io memory hugetlb pids"), Controllers { memory: true, cpu: true, tasks: true });
    assert_eq!(Controllers::parse("hugetlb cpuset"), Controllers::default());
}

#[test]
fn a_name_for_each_supervisor() {
    assert_eq!(name_for(Path::new("/run/rsup")), "rsup");
    assert_ne!(name_for(Path::new("/a")), name_for(Path::new("/b")));
    assert_eq!(name_for(Path::new("/a")), name_for(Path::new("/a")));
}

/// A plain folder that stands for a cgroup: what would be written to the kernel can be read in it.
fn imitation(controllers: &str) -> (tempfile::TempDir, Tree) {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().to_owned();
    (folder, Tree { base, controllers: Controllers::parse(controllers), lacks: None })
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let all = Bounds { memory: Some(1 << 20), cpu: Some(0.5), tasks: Some(10) };
    let (_folder, tree) = imitation("memory");
    let why = tree.lacking(&all).unwrap();
    assert!(why.contains("`cpu`, `pids`"), "{why}");
    assert_eq!(tree.lacking(&Bounds { memory: Some(1), ..Bounds::default() }), None);
    assert_eq!(tree.lacking(&Bounds::default()), None);
}

#[test]
fn a_folder_with_somebody_in_it_is_left_to_them() {
    let (folder, tree) = imitation("");
    let first = tree.worker("web", 7, &Bounds::default()).unwrap();
    assert_eq!(first.path(), folder.path().join("app.web/7"));
    // Empty, as the kernel would see it: made anew.
    assert_eq!(tree.worker("web", 7, &Bounds::default()).unwrap(), first);
    fs::write(first.path().join("member"), "").unwrap();
    assert_eq!(tree.worker("web", 7, &Bounds::default()).unwrap().path(), folder.path().join("app.web/7.1"));
}

#[test]
fn events_and_members() {
    let (_folder, tree) = imitation("");
    let leaf = tree.worker("web", 1, &Bounds::default()).unwrap();
    assert_eq!((leaf.out_of_memory(), leaf.members()), (0, vec![]));
    fs::write(leaf.path().join("memory.events"), "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
    fs::write(leaf.path().join("cgroup.procs"), "12\n0\n345\n").unwrap();
    assert_eq!((leaf.out_of_memory(), leaf.members()), (2, vec![12, 345]));
}
