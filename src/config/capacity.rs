//! How many workers this machine allows an app: reported by the numbers of the configuration,
//! before anything is started.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::cursor::Context;
use super::raw::{Bad, Span};
use super::types::{AppSpec, Listen};
use crate::sys::limits;
use crate::sys::listen::Family;
use crate::sys::steer;

/// Descriptors of a daemon that has no workers, and of the start of one (measured: 29 and 8).
const FILES_OF_DAEMON: u64 = 37;
/// Descriptors per worker, without its listening sockets: its pipes, its pidfd, the listeners of
/// its seccomp filter and its share of the cgroups (measured: 10).
const FILES_OF_WORKER: u64 = 10;

/// The machine's limits on the number of workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// Sockets on one address that can be steered, limited by the program's length: see
    /// [`steer::max_slots`].
    pub slots: usize,
    /// The same where probes go by IPv6 alone: see [`steer::max_slots_of`].
    pub slots_v6: usize,
    /// The hard limit of open files.
    pub files: Option<u64>,
    /// How many more processes the user may have.
    pub processes: Option<u64>,
}

impl Capacity {
    pub fn here() -> Self {
        let slots = steer::max_slots();
        let only_v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 1));
        Self {
            slots,
            slots_v6: steer::max_slots_of(only_v6, Family::V6 { only: true }),
            files: limits::hard_files(),
            processes: limits::room_for_processes(),
        }
    }

    fn slots_of(&self, listen: &Listen) -> Option<(SocketAddr, usize)> {
        let Listen::Tcp { addr, v6only } = listen else {
            return None;
        };
        let family = match addr {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6 { only: *v6only },
        };
        let by_v6 = steer::probe_target(*addr, family).is_ipv6();
        Some((*addr, if by_v6 { self.slots_v6 } else { self.slots }))
    }

    fn too_many_slots<'a>(
        &self,
        instances: u16,
        surge: u16,
        mut addresses: impl Iterator<Item = &'a Listen>,
    ) -> Option<TooMany> {
        // One slot is the holding slot.
        let wanted = usize::from(instances) + usize::from(surge) + 1;
        let (addr, slots) = addresses
            .find_map(|listen| self.slots_of(listen).filter(|(_, slots)| wanted > *slots))?;
        let room = slots.saturating_sub(1);
        let mut hint = match room.saturating_sub(usize::from(surge)) {
            0 => "write a smaller `max_surge`".to_owned(),
            most => format!("write `instances = {most}` or fewer"),
        };
        if slots == self.slots {
            hint.push_str(", or raise sysctl net.core.optmem_max");
        } else {
            let _ = write!(hint, ", or listen on an address that takes IPv4 too");
        }
        Some(TooMany {
            message: format!(
                "{instances} instances with a `max_surge` of {surge} are more than the {room} workers that {addr} can have at once{}",
                if slots == self.slots {
                    ""
                } else {
                    ", as it has no IPv4"
                }
            ),
            hint,
        })
    }
}

/// Why an app cannot have so many workers, and what to write instead.
#[derive(Debug)]
pub struct TooMany {
    pub message: String,
    pub hint: String,
}

/// An error if the app wants more workers than its addresses can have on this machine.
#[must_use]
pub fn too_many_slots(spec: &AppSpec) -> Option<TooMany> {
    Capacity::here().too_many_slots(
        spec.instances,
        spec.surge(spec.instances),
        spec.listen.iter(),
    )
}

/// A message if a daemon that may open `limit` files has too few for this app alone.
#[must_use]
pub fn too_many_files(spec: &AppSpec, limit: u64) -> Option<String> {
    let workers = u64::from(spec.instances);
    let needed = FILES_OF_DAEMON + files_of(spec);
    (needed > limit).then(|| {
        format!(
            "{workers} {} about {needed} open files in rsup, which may have {limit} (ulimit -Hn)",
            if workers == 1 {
                "instance needs"
            } else {
                "instances need"
            }
        )
    })
}

/// Descriptors of the daemon for all workers of the app.
fn files_of(spec: &AppSpec) -> u64 {
    let workers = u64::from(spec.instances);
    let sockets = (workers + u64::from(spec.surge(spec.instances))) * spec.listen.len() as u64;
    workers * FILES_OF_WORKER + sockets
}

/// Adds a warning if the apps of a file together need more than the machine allows, and none of them alone.
/// `span` is that of the last app.
pub(super) fn check_all(cx: &mut Context, apps: &[AppSpec], span: Span) {
    let capacity = cx.machine.capacity;
    let workers: u64 = apps.iter().map(|app| u64::from(app.instances)).sum();
    let needed = FILES_OF_DAEMON + apps.iter().map(files_of).sum::<u64>();
    if let Some(limit) = capacity.files.filter(|limit| needed > *limit)
        && apps.iter().all(|app| too_many_files(app, limit).is_none())
    {
        cx.warn(Bad {
            span: span.clone(),
            message: format!(
                "the {workers} instances of all apps together may need {needed} open files in rsup, which may have {limit} (ulimit -Hn)"
            ),
            hint: Some("raise the limit (LimitNOFILE= of a unit), or write fewer instances".to_owned()),
        });
    }
    if let Some(room) = capacity.processes.filter(|room| workers > *room)
        && apps.iter().all(|app| u64::from(app.instances) <= room)
    {
        cx.warn(Bad {
            span,
            message: format!(
                "the {workers} instances of all apps together are more than the {room} processes that may still be made here"
            ),
            hint: Some(
                "raise pids.max (TasksMax= of a unit, docker run --pids-limit), or write fewer"
                    .to_owned(),
            ),
        });
    }
}

/// Adds the problems to the context. `instances` is where the number is written, if it is.
pub(super) fn check(
    cx: &mut Context,
    spec: &AppSpec,
    placed: &[(Listen, Span)],
    instances: Option<Span>,
) {
    let capacity = cx.machine.capacity;
    for (listen, span) in placed {
        let found = capacity.too_many_slots(
            spec.instances,
            spec.surge(spec.instances),
            std::iter::once(listen),
        );
        if let Some(TooMany { message, hint }) = found {
            cx.error(Bad {
                span: instances.clone().unwrap_or_else(|| span.clone()),
                message,
                hint: Some(hint),
            });
            return;
        }
    }
    let Some(span) = instances else { return };
    // Only warnings: a running daemon has limits of its own, which it checks itself.
    if let Some(message) = capacity.files.and_then(|limit| too_many_files(spec, limit)) {
        cx.warn(Bad {
            span: span.clone(),
            message,
            hint: Some("raise the limit, or write fewer instances".to_owned()),
        });
    }
    if let Some(room) = capacity
        .processes
        .filter(|room| u64::from(spec.instances) > *room)
    {
        cx.warn(Bad {
            span,
            message: format!(
                "{} instances are more than the {room} processes that may still be made here",
                spec.instances
            ),
            hint: Some(
                "raise pids.max (TasksMax= of a unit, docker run --pids-limit), or write fewer"
                    .to_owned(),
            ),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::cursor::Machine;
    use super::super::tests::MACHINE;
    use super::super::{parse_on, types::AppSpec};
    use super::*;

    fn judged(capacity: Capacity, keys: &str) -> Result<(AppSpec, String), String> {
        let machine = Machine {
            capacity,
            ..MACHINE
        };
        let text = format!("[app.a]\ncommand = 'a'\n{keys}");
        match parse_on(machine, &text, "/s.toml".as_ref()) {
            Ok(mut loaded) => {
                let said = loaded.warnings.iter().map(|one| one.render(false));
                Ok((loaded.config.apps.remove(0), said.collect()))
            }
            Err(errors) => Err(errors.render(false)),
        }
    }

    #[test]
    fn slots_by_family_surge_included() {
        let keys = |n: u16, listen: &str| {
            format!("instances = {n}\nlisten = \"{listen}\"\nreload.max_surge = 1")
        };
        let here = MACHINE.capacity;
        assert!(judged(here, &keys(61, "[::1]:3001")).is_ok());
        let said = judged(here, &keys(62, "[::1]:3001")).unwrap_err();
        for words in [
            "62 instances with a `max_surge` of 1 are more than the 62 workers that [::1]:3001",
            "write `instances = 61` or fewer",
            "IPv4",
        ] {
            assert!(said.contains(words), "{words} is not in {said}");
        }
        assert!(judged(here, &keys(250, "[::]:3001")).is_ok());
        assert!(judged(here, &keys(250, "127.0.0.1:3001")).is_ok());
        let short = Capacity { slots: 100, ..here };
        assert!(judged(short, &keys(98, "127.0.0.1:3001")).is_ok());
        let said = judged(short, &keys(99, "127.0.0.1:3001")).unwrap_err();
        assert!(said.contains("net.core.optmem_max"), "{said}");
    }

    #[test]
    fn files_and_processes() {
        let few = Capacity {
            files: Some(64),
            processes: Some(5),
            ..MACHINE.capacity
        };
        let (_, said) = judged(few, "instances = 8\nlisten = 3001").unwrap();
        for words in ["8 instances need about", "may have 64", "the 5 processes"] {
            assert!(said.contains(words), "{words} is not in {said}");
        }
        let (_, said) = judged(few, "instances = 1\nlisten = 3001").unwrap();
        assert_eq!(said, "");
    }

    #[test]
    fn apps_that_are_too_many_together() {
        let few = Capacity {
            files: Some(64),
            processes: Some(3),
            ..MACHINE.capacity
        };
        let second = |keys: &str| format!("instances = 2\n[app.b]\ncommand = 'b'\n{keys}");
        let (_, said) = judged(few, &second("instances = 2")).unwrap();
        for words in [
            "4 instances of all apps together may need 77 open files",
            "may have 64",
            "together are more than the 3 processes",
            "app.b",
        ] {
            assert!(said.contains(words), "{words} is not in {said}");
        }
        let enough = Capacity {
            files: Some(77),
            processes: Some(4),
            ..few
        };
        assert_eq!(judged(enough, &second("instances = 2")).unwrap().1, "");
    }
}
