//! What can happen.

use std::fs;
use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::Signal;

use crate::world::{Result, World, is_alive, signal, wait_for};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Nothing,
    Reload,
    ReloadThatCrashes,
    ReloadThatIsNeverReady,
    Scale,
    KillWorker,
    KillDaemon,
    KillKeeper,
    KillKeeperAndDaemon,
    KillWorkerAndDaemon,
    KillDaemonInReload,
    KillKeeperInReload,
    KillDaemonInBrokenReload,
    KillDaemonTwice,
    StopWorkerForAWhile,
    StopDaemonForAWhile,
    StopKeeperForAWhile,
    FillLogDisk,
    Upgrade,
    UpgradeInReload,
}

pub const ALL: [Action; 20] = [
    Action::Nothing,
    Action::Reload,
    Action::ReloadThatCrashes,
    Action::ReloadThatIsNeverReady,
    Action::Scale,
    Action::KillWorker,
    Action::KillDaemon,
    Action::KillKeeper,
    Action::KillKeeperAndDaemon,
    Action::KillWorkerAndDaemon,
    Action::KillDaemonInReload,
    Action::KillKeeperInReload,
    Action::KillDaemonInBrokenReload,
    Action::KillDaemonTwice,
    Action::StopWorkerForAWhile,
    Action::StopDaemonForAWhile,
    Action::StopKeeperForAWhile,
    Action::FillLogDisk,
    Action::Upgrade,
    Action::UpgradeInReload,
];

/// By its name, as the account has it.
impl FromStr for Action {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let known = ALL.iter().copied().find(|action| action.name() == name);
        known.ok_or_else(|| {
            let names = ALL.map(Self::name).join(", ");
            format!("it is one of: {names}")
        })
    }
}

impl Action {
    pub fn choose(among: &[Self], random: &mut Rng, world: &World) -> Self {
        // Drawn always, so that a machine without a disk to fill goes on in the same order.
        match among[random.usize(..among.len())] {
            Self::FillLogDisk if world.disk().is_none() => Self::Nothing,
            action => action,
        }
    }

    /// A worker that has accepted a request takes it along when it is killed.
    pub fn may_lose_requests(self) -> bool {
        matches!(self, Self::KillWorker | Self::KillWorkerAndDaemon)
    }

    /// What rsup had just read and not yet written is in memory that daemon and keeper alone hold.
    pub fn may_lose_lines(self) -> bool {
        matches!(self, Self::KillKeeperAndDaemon)
    }

    pub fn name(self) -> String {
        let mut words = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_uppercase() && !words.is_empty() {
                words.push(' ');
            }
            words.extend(c.to_lowercase());
        }
        words
    }

    pub fn run(self, world: &mut World, random: &mut Rng) -> Result<()> {
        match self {
            Self::Nothing => std::thread::sleep(Duration::from_millis(300)),
            Self::Reload => reload(world, "", 0, random, Meanwhile::Nothing)?,
            Self::ReloadThatCrashes => reload(
                world,
                ", CRASH_AT_START = \"1\"",
                1,
                random,
                Meanwhile::Nothing,
            )?,
            Self::ReloadThatIsNeverReady => reload(
                world,
                ", NEVER_READY = \"1\"",
                1,
                random,
                Meanwhile::Nothing,
            )?,
            Self::KillDaemonInReload => reload(world, "", 0, random, Meanwhile::KillDaemon)?,
            Self::KillKeeperInReload => reload(world, "", 0, random, Meanwhile::KillKeeper)?,
            Self::KillDaemonInBrokenReload => reload(
                world,
                ", NEVER_READY = \"1\"",
                1,
                random,
                Meanwhile::KillDaemon,
            )?,
            Self::UpgradeInReload => reload(world, "", 0, random, Meanwhile::Upgrade)?,
            Self::Scale => {
                world.instances = random.u16(2..=5);
                world.configure("")?;
                world.expect(&["scale", "web", &world.instances.to_string()], 0)?;
            }
            Self::KillWorker => signal(victim(world, random)?, Signal::SIGKILL),
            Self::KillDaemon => kill_daemon(world)?,
            Self::KillKeeper => {
                let keeper = world.keeper()?;
                signal(keeper, Signal::SIGKILL);
                wait_for("another keeper", || {
                    if world.keeper()? != keeper {
                        Ok(())
                    } else {
                        Err("not yet".into())
                    }
                })?;
            }
            Self::KillKeeperAndDaemon => {
                let (keeper, daemon) = (world.keeper()?, world.daemon()?);
                signal(daemon, Signal::SIGSTOP);
                signal(keeper, Signal::SIGKILL);
                gone(keeper)?;
                signal(daemon, Signal::SIGKILL);
                gone(daemon)?;
                std::thread::sleep(Duration::from_millis(random.u64(..500)));
            }
            Self::KillWorkerAndDaemon => {
                let worker = victim(world, random)?;
                let daemon = world.daemon()?;
                signal(daemon, Signal::SIGKILL);
                signal(worker, Signal::SIGKILL);
                gone(daemon)?;
            }
            Self::KillDaemonTwice => {
                kill_daemon(world)?;
                kill_daemon(world)?;
            }
            Self::StopWorkerForAWhile => still(victim(world, random)?, random.u64(100..1200)),
            Self::StopDaemonForAWhile => still(world.daemon()?, random.u64(100..3000)),
            Self::StopKeeperForAWhile => {
                let keeper = world.keeper()?;
                signal(keeper, Signal::SIGSTOP);
                let result = reload(world, "", 0, random, Meanwhile::Nothing);
                signal(keeper, Signal::SIGCONT);
                result?;
            }
            Self::FillLogDisk => fill(world)?,
            Self::Upgrade => world.expect(&["upgrade"], 0)?,
        }
        Ok(())
    }
}

/// What happens while a reload is under way.
enum Meanwhile {
    Nothing,
    KillDaemon,
    KillKeeper,
    Upgrade,
}

/// Reloads to a new release, which must end with this code.
fn reload(
    world: &mut World,
    env: &str,
    code: i32,
    random: &mut Rng,
    meanwhile: Meanwhile,
) -> Result<()> {
    world.version += 1;
    world.configure(env)?;
    let args = ["reload", "web"];
    let child = world
        .command(&args)
        .spawn()
        .map_err(|why| why.to_string())?;
    let moment = Duration::from_millis(random.u64(..900));
    let result = match meanwhile {
        Meanwhile::Nothing => Ok(()),
        Meanwhile::KillDaemon => {
            std::thread::sleep(moment);
            kill_daemon(world)
        }
        Meanwhile::KillKeeper => {
            std::thread::sleep(moment);
            world.keeper().map(|keeper| signal(keeper, Signal::SIGKILL))
        }
        Meanwhile::Upgrade => {
            std::thread::sleep(moment);
            world.expect(&["upgrade"], 0)
        }
    };
    let output = child.wait_with_output().map_err(|why| why.to_string())?;
    world.configure("")?;
    result?;
    world.expect_of(output, &args, code)
}

fn victim(world: &World, random: &mut Rng) -> Result<u32> {
    let pids = world.pids("web")?;
    random
        .choice(pids)
        .ok_or_else(|| "there is no worker".into())
}

fn kill_daemon(world: &World) -> Result<()> {
    let daemon = world.daemon()?;
    signal(daemon, Signal::SIGKILL);
    gone(daemon)
}

fn gone(pid: u32) -> Result<()> {
    wait_for("its end", || {
        if is_alive(pid) {
            Err(format!("{pid} lives"))
        } else {
            Ok(())
        }
    })
}

fn still(pid: u32, ms: u64) {
    signal(pid, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(ms));
    signal(pid, Signal::SIGCONT);
}

/// No room under the logs: serving goes on, and so does a reload.
fn fill(world: &mut World) -> Result<()> {
    let Some(disk) = world.disk() else {
        return Ok(());
    };
    let filler = disk.join("filler");
    // Ends with ENOSPC.
    let _ = fs::write(&filler, vec![0; 8 << 20]);
    world.version += 1;
    world.configure("")?;
    let result = world.expect(&["reload", "web"], 0);
    fs::remove_file(filler).map_err(|why| why.to_string())?;
    result
}
