//! What must hold when all is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::world::{Result, World, wait_for};

/// As it was before anything happened.
pub struct Baseline {
    descriptors: usize,
}

pub fn baseline(world: &World) -> Result<Baseline> {
    world.settle()?;
    Ok(Baseline {
        descriptors: descriptors(world.daemon()?),
    })
}

/// What is not as it should be.
pub fn broken_invariants(
    world: &mut World,
    baseline: &Baseline,
    excused: &BTreeSet<String>,
) -> Vec<String> {
    let mut broken = Vec::new();
    let mut check = |result: Result<()>| broken.extend(result.err());
    // With the number of workers that there was at first.
    world.instances = 3;
    check(
        world
            .configure("")
            .and_then(|()| world.expect(&["scale", "web", "3"], 0)),
    );
    check(world.expect(&["reload", "web"], 0));
    check(world.settle());
    check(only_workers(world));
    check(slots(world));
    // A new daemon, as at first: how many slots a daemon holds depends on its past.
    check(wait_for("no more descriptors than at first", || {
        // A list lets go of the files in /proc of workers that are gone.
        world.view("web")?;
        let now = descriptors(world.daemon()?);
        // Slots that were once needed are kept: three more workers and their surge, each held twice.
        let most = baseline.descriptors + 10;
        if now <= most {
            Ok(())
        } else {
            Err(format!("{now}, and there were {}", baseline.descriptors))
        }
    }));
    check(lines(world, excused));
    broken
}

/// No process but rsup's own and the workers that it knows of.
fn only_workers(world: &World) -> Result<()> {
    wait_for("no orphan", || {
        let mut known = [world.pids("web")?, world.pids("count")?].concat();
        known.extend([world.daemon()?, world.keeper()?]);
        // The counting shell has a `sleep` below it at most times.
        let is_sleep = |what: &str| what.trim_end() == "sleep 0.02";
        let (holders, orphans): (Vec<_>, Vec<_>) = world
            .processes()
            .into_iter()
            .filter(|(pid, what)| !known.contains(pid) && !is_sleep(what))
            .partition(|(_, what)| what.starts_with("bind-holder "));
        // One holds the listeners of root's workers.
        if orphans.is_empty() && holders.len() <= 1 {
            Ok(())
        } else {
            Err(format!("{orphans:?} {holders:?}"))
        }
    })
}

/// One listening socket for each slot and the lobby, and none besides.
fn slots(world: &World) -> Result<()> {
    let table = fs::read_to_string("/proc/net/tcp").map_err(|why| why.to_string())?;
    let port = format!(":{:04X}", world.port);
    let listening = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("0A")
    };
    // At most five workers and a quarter of them as surge have been there.
    let (count, most) = (table.lines().filter(listening).count(), 5 + 2 + 1);
    if (5..=most).contains(&count) {
        Ok(())
    } else {
        Err(format!("{count} sockets listen, and 5 to {most} should"))
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The counting app's lines, of each of its processes: one after the other but for `excused`, and none twice.
fn lines(world: &World, excused: &BTreeSet<String>) -> Result<()> {
    match gaps(world)?.difference(excused).next() {
        Some(gap) => Err(gap.clone()),
        None => Ok(()),
    }
}

/// Where lines of the counting app are missing.
pub fn gaps(world: &World) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(world.path("h/state/logs/count-out.log"))
        .map_err(|why| format!("count-out.log: {why}"))?;
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut gaps = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(pid), Some(Ok(n))) = (words.next(), words.next().map(str::parse)) else {
            return Err(format!("count-out.log has the line `{line}`"));
        };
        let before = last.insert(pid, n).unwrap_or(0);
        let order = format!("line {n} of process {pid} came after {before}");
        if n <= before {
            return Err(order);
        }
        if n != before + 1 {
            gaps.insert(order);
        }
    }
    if last.is_empty() {
        Err("count-out.log is empty".into())
    } else {
        Ok(gaps)
    }
}
