//! Start, `list`, the daemon's death and the stop of very many apps: how long each takes, and how many
//! times as long as with fewer apps. What costs the same per app takes as many times as long as there are
//! times as many apps; the workers do nothing and cost next to nothing.
//!
//! ```text
//! cargo bench --bench scale [-- --quick]
//! ```

mod common;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Bar, Options, Result, Rsup, Table, process, until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files of the daemon: per worker, and beside them (its meter has the most).
const FILES_OF_WORKER: u64 = 4;
const FILES: u64 = 2500;
/// No more steps begin after this time.
const ENOUGH: Duration = Duration::from_secs(600);

/// One step, in seconds.
struct Times {
    apps: usize,
    start: f64,
    list: f64,
    revived: f64,
    stop: f64,
}

fn main() -> Result<()> {
    let options = Options::parse("scale: apps of one idle worker each");
    let begun = Instant::now();
    let mut steps: Vec<Times> = Vec::new();
    for apps in options.pick(vec![100, 400, 1000, 4000], vec![100, 400]) {
        if begun.elapsed() > ENOUGH {
            println!("{apps} apps are left out: the steps before took too long");
        } else if raise_files(FILES + FILES_OF_WORKER * apps as u64) {
            steps.push(step(apps)?);
        } else {
            println!("{apps} apps are left out: they need more open files (ulimit -Hn)");
        }
    }
    let mut table = Table::default();
    type Column = (&'static str, fn(&Times) -> f64, f64);
    let columns: [Column; 4] = [
        ("start", |t| t.start, 3.0),
        ("list", |t| t.list, 0.1),
        ("kill -9 of the daemon, next list", |t| t.revived, 3.0),
        ("stop (rsup kill)", |t| t.stop, 3.0),
    ];
    for (what, of, most) in columns {
        for (at, times) in steps.iter().enumerate() {
            let before = at.checked_sub(1).map(|at| &steps[at]);
            let detail = before.map_or_else(String::new, |before| {
                let more = times.apps as f64 / before.apps as f64;
                let ratio = of(times) / of(before);
                format!("{ratio:.1} times as long, for {more:.1} times as many")
            });
            let bar = if times.apps == 1000 {
                Bar::AtMost(most)
            } else {
                Bar::None
            };
            let what = format!("{what}, {} apps", times.apps);
            table.row(&what, of(times), " s", bar, detail);
        }
    }
    table.print();
    Ok(())
}

fn step(apps: usize) -> Result<Times> {
    let rsup = Rsup::new()?;
    let program = rsup.home.path().join("idle");
    let command = idle(&program)?;
    let mut toml = String::new();
    for app in 0..apps {
        writeln!(
            toml,
            "[app.app{app}]\ncommand = {command}\nrestart.min_uptime = \"50ms\""
        )?;
    }
    let file = rsup.home.path().join("supervisor.toml");
    fs::write(&file, toml)?;
    let file = file.display().to_string();
    let timed = |arguments: &[&str]| -> Result<f64> {
        let begin = Instant::now();
        rsup.run(arguments)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let start = timed(&["start", &file])?;
    let list = timed(&["list"])?;
    let daemon = rsup.daemon()?;
    process::kill(daemon);
    let revived = timed(&["list"])?;
    if rsup.daemon()? == daemon {
        return Err("the daemon was not killed".into());
    }
    let stop = timed(&["kill"])?;
    let marked = || is_left(&program);
    until("the end of all workers", Duration::from_secs(10), || {
        !marked()
    })?;
    Ok(Times {
        apps,
        start,
        list,
        revived,
        stop,
    })
}

/// Whether any process still runs the program.
fn is_left(program: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| fs::read_link(entry.path().join("exe")).ok())
        .any(|exe| exe == program)
}

/// The hard limit too, where that is allowed: daemons inherit it.
fn raise_files(wanted: u64) -> bool {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return false;
    };
    hard >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok()
}

/// The command of a worker, as TOML: a program of 140 bytes that only waits for signals, so that the figures
/// are not those of the dynamic linker; elsewhere `sleep`.
fn idle(path: &Path) -> Result<String> {
    let code: &[u8] = if cfg!(target_arch = "x86_64") {
        // again: mov $34 (pause), %eax; syscall; jmp again
        &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]
    } else {
        return Ok("[\"sleep\", \"100000\"]".into());
    };
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    // elf(5): the header of the file, and that of its one segment.
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    };
    let word = |elf: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    };
    let long = |elf: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    };
    half(&mut elf, &[2, 62]); // ET_EXEC, EM_X86_64
    word(&mut elf, &[1]);
    long(&mut elf, &[BASE + HEADERS, 64, 0]);
    word(&mut elf, &[0]);
    half(&mut elf, &[64, 56, 1, 0, 0, 0]);
    word(&mut elf, &[1, 5]); // PT_LOAD, readable and executable
    long(&mut elf, &[0, BASE, BASE, size, size, 0x1000]);
    elf.extend(code);
    fs::write(path, elf)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(format!("[{:?}]", path.display().to_string()))
}
