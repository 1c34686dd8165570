//! What workers bind, as far as a user should know of it: where an app is served differently from what it or
//! its configuration says, and ports outside `listen`, which workers cannot share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::Fleet;
use crate::config::{AppName, AppSpec, Listen};
use crate::core::{Supervisor, WorkerId};
use crate::daemon::network::Network;
use crate::sys::takeover::Bind;
use crate::sys::{holder, sockdiag};

/// Of one worker so many ports outside `listen` are remembered.
const MOST: usize = 16;

/// What workers have bound, by generation; of ended ones as long as their last lines are remembered.
#[derive(Default)]
pub struct Bound(BTreeMap<u64, OfWorker>);

struct OfWorker {
    id: WorkerId,
    instance: u16,
    /// What it asked for, where it got a socket of an address of `listen`.
    own: BTreeMap<Listen, SocketAddr>,
    /// Fixed ports outside `listen`. That it asked does not say that it got them.
    elsewhere: BTreeSet<Elsewhere>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Elsewhere {
    addr: SocketAddr,
    is_stream: bool,
}

impl OfWorker {
    fn name(&self) -> String {
        format!("{}:{}", self.id.app, self.instance)
    }
}

/// Why a worker failed, as far as its binds tell.
pub struct Explanation {
    /// A sentence to add to the error.
    pub what: String,
    /// What to do.
    pub hint: String,
}

impl Fleet {
    /// A worker has got a socket of the address in place of the one that it wanted to bind.
    pub(super) fn saw_own_bind(
        &mut self,
        worker: &WorkerId,
        address: &Listen,
        bind: &Bind,
        supervisor: &Supervisor,
    ) {
        if let Some(seen) = self.seen_of(worker, supervisor) {
            seen.own.insert(address.clone(), bind.addr);
        }
    }

    /// A worker binds an address that is not in `listen`.
    pub(super) fn saw_bind_elsewhere(
        &mut self,
        worker: &WorkerId,
        bind: &Bind,
        supervisor: &Supervisor,
    ) {
        // For port 0 the kernel chooses: no two workers want the same.
        if bind.addr.port() != 0 {
            let seen = self.seen_of(worker, supervisor);
            note_elsewhere(seen, bind.addr, bind.socket.is_stream);
        }
    }

    /// A worker of an earlier daemon listens on it.
    pub fn saw_listening(
        &mut self,
        worker: &WorkerId,
        spec: &AppSpec,
        addr: SocketAddr,
        supervisor: &Supervisor,
    ) {
        let mut ours = spec.listen.iter().filter_map(Listen::tcp);
        if !ours.any(|ours| ours.port() == addr.port()) && !is_ephemeral(addr.port()) {
            note_elsewhere(self.seen_of(worker, supervisor), addr, true);
        }
    }

    fn seen_of(&mut self, worker: &WorkerId, supervisor: &Supervisor) -> Option<&mut OfWorker> {
        if !self.bound.0.contains_key(&worker.generation) {
            let instance = supervisor.worker(worker)?.instance;
            let (running, remembered) = (&self.running, &self.remembered);
            self.bound
                .0
                .retain(|number, _| running.contains_key(number) || remembered.contains(number));
            let seen = OfWorker {
                id: worker.clone(),
                instance,
                own: BTreeMap::new(),
                elsewhere: BTreeSet::new(),
            };
            self.bound.0.insert(worker.generation, seen);
        }
        self.bound.0.get_mut(&worker.generation)
    }

    fn living_of<'a>(&'a self, app: &'a AppName) -> impl Iterator<Item = &'a OfWorker> {
        self.bound.0.iter().filter_map(move |(generation, seen)| {
            let lives = self.running.get(generation).is_some_and(|r| !r.exited);
            (seen.id.app == *app && lives).then_some(seen)
        })
    }

    /// What a user should know of the binds of an app that runs.
    pub fn bind_notes(&self, name: &AppName, spec: &AppSpec, network: &Network) -> Vec<String> {
        let mut notes = BTreeSet::new();
        for address in &spec.listen {
            let served = network.served_otherwise(name, address);
            let asked: BTreeSet<SocketAddr> = self
                .living_of(name)
                .filter_map(|seen| seen.own.get(address).copied())
                .collect();
            let public = asked
                .iter()
                .find_map(|asked| public_note(served.or(address.tcp())?, *asked));
            let family = served.map(|served| family_note(address, served, asked.first()));
            notes.extend(public.or(family));
        }
        let ports: BTreeSet<SocketAddr> = self
            .living_of(name)
            .flat_map(|seen| &seen.elsewhere)
            .filter(|elsewhere| elsewhere.is_stream)
            .map(|elsewhere| elsewhere.addr)
            .filter(|addr| sockdiag::listeners(addr.port()).is_ok_and(|found| !found.is_empty()))
            .collect();
        if !ports.is_empty() {
            let all: Vec<SocketAddr> = ports.into_iter().collect();
            let (list, it) = match all.as_slice() {
                [one] => (one.to_string(), "it"),
                more => (join(more), "them"),
            };
            notes.insert(format!(
                "the app listens on {list} as well, which is not in `listen`: a second worker, or the replacement in a reload, \
                 cannot have {it} too; write {}, so that each worker gets a socket of its own",
                with_listen(spec, &all)
            ));
        }
        notes.into_iter().collect()
    }

    /// Whether the binds of a worker explain that it failed.
    pub fn explain_by_binds(
        &self,
        worker: &WorkerId,
        spec: &AppSpec,
        supervisor: &Supervisor,
    ) -> Option<Explanation> {
        let seen = self.bound.0.get(&worker.generation)?;
        let taken = seen.elsewhere.iter().find_map(|elsewhere| {
            self.holder_of(worker, *elsewhere, supervisor)
                .map(|who| (*elsewhere, who))
        });
        if let Some((Elsewhere { addr, is_stream }, who)) = taken {
            let own_port = "have each worker take a port of its own, by RSUP_INSTANCE";
            let hint = match is_stream {
                true => format!(
                    "write {}, so that each worker gets a socket of its own; or {own_port}",
                    with_listen(spec, &[addr])
                ),
                false => own_port.to_owned(),
            };
            let udp = if is_stream { "" } else { "UDP " };
            return Some(Explanation {
                what: format!(
                    "it binds {udp}{addr}, which is not in `listen`, and which {who} has"
                ),
                hint,
            });
        }
        let tcp: Vec<SocketAddr> = spec.listen.iter().filter_map(Listen::tcp).collect();
        let elsewhere: Vec<SocketAddr> = seen
            .elsewhere
            .iter()
            .filter(|elsewhere| elsewhere.is_stream)
            .map(|elsewhere| elsewhere.addr)
            .collect();
        let (first, first_bound) = (tcp.first()?, elsewhere.first()?);
        if !seen.own.is_empty() {
            return None;
        }
        let not = match tcp.as_slice() {
            [one] => one.to_string(),
            more => format!("any of {}", join(more)),
        };
        let port = match spec.env.get("PORT") {
            Some(port) => port.clone(),
            None => first.port().to_string(),
        };
        Some(Explanation {
            what: format!(
                "it has bound {}, which is not in `listen`, and not {not}",
                join(&elsewhere)
            ),
            hint: format!(
                "write {}, or have the app listen on the port in the variable PORT, {port}",
                only_listen(spec, *first_bound)
            ),
        })
    }

    /// Another worker of the app, or any other process, that has the port.
    fn holder_of(
        &self,
        worker: &WorkerId,
        wanted: Elsewhere,
        supervisor: &Supervisor,
    ) -> Option<String> {
        let same = |other: &Elsewhere| {
            other.is_stream == wanted.is_stream && other.addr.port() == wanted.addr.port()
        };
        let beside = self
            .living_of(&worker.app)
            .find(|other| other.id != *worker && other.elsewhere.iter().any(same));
        if let Some(other) = beside {
            return Some(other.name());
        }
        if !wanted.is_stream {
            return None;
        }
        let holders = holder::of_tcp(wanted.addr).unwrap_or_default();
        holders.into_iter().find_map(|holder| {
            let owner = self.running.values().find(|r| r.owns(holder.pid));
            match owner {
                Some(owner) if owner.id == *worker => None,
                Some(owner) => {
                    let instance = supervisor.worker(&owner.id)?.instance;
                    Some(format!("{}:{instance}", owner.id.app))
                }
                None => Some(holder.to_string()),
            }
        })
    }
}

fn note_elsewhere(seen: Option<&mut OfWorker>, addr: SocketAddr, is_stream: bool) {
    if let Some(seen) = seen.filter(|seen| seen.elsewhere.len() < MOST) {
        seen.elsewhere.insert(Elsewhere { addr, is_stream });
    }
}

/// Whether the kernel may have chosen the port (ip(7), `ip_local_port_range`; its default where it cannot be read).
fn is_ephemeral(port: u16) -> bool {
    let text =
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map(str::parse::<u16>);
    let (first, last) = match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first, last),
        _ => (32768, 60999),
    };
    (first..=last).contains(&port)
}

/// `listen` names both families, and one is served.
fn family_note(address: &Listen, served: SocketAddr, asked: Option<&SocketAddr>) -> String {
    let begin = format!("the app is served on {served} alone, although `listen` says {address}");
    match asked {
        Some(asked) if asked.is_ipv6() => format!(
            "{begin}: it was started with an IPv4 socket; now that the app binds {asked}, `rsup stop` and `rsup start` serve both"
        ),
        Some(asked) => format!(
            "{begin}: the app binds {asked}, and an IPv4 socket takes no IPv6; have it bind [::]:{port}, or write {served}",
            port = served.port()
        ),
        None => format!("{begin}: the app has made an IPv4 socket"),
    }
}

/// The app wants to be reached from this machine alone, and is from others too.
fn public_note(served: SocketAddr, asked: SocketAddr) -> Option<String> {
    let is_local = |ip: IpAddr| ip.to_canonical().is_loopback();
    (is_local(asked.ip()) && !is_local(served.ip())).then(|| {
        format!(
            "the app binds {asked}, but rsup serves it on {served}, as `listen` says: other machines can reach it; \
             if they are not to, write \"{asked}\""
        )
    })
}

fn join(addresses: &[SocketAddr]) -> String {
    let words: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// How a user writes the address.
fn written(addr: SocketAddr, both_families: bool, quoted: bool) -> String {
    if addr.ip().is_unspecified() && both_families {
        return addr.port().to_string();
    }
    if quoted {
        format!("\"{addr}\"")
    } else {
        addr.to_string()
    }
}

fn all_written(spec: &AppSpec, more: &[SocketAddr], quoted: bool) -> Vec<String> {
    let configured = spec.listen.iter().map(|listen| match listen {
        Listen::Tcp { addr, v6only } => written(*addr, addr.is_ipv6() && !v6only, quoted),
        Listen::Unix(_) if quoted => format!("\"{listen}\""),
        Listen::Unix(_) => listen.to_string(),
    });
    configured
        .chain(more.iter().map(|addr| written(*addr, true, quoted)))
        .collect()
}

/// `listen` of the app with these beside what it has.
fn with_listen(spec: &AppSpec, more: &[SocketAddr]) -> String {
    match spec.source {
        Some(_) => format!("`listen = [{}]`", all_written(spec, more, true).join(", ")),
        None => {
            let words = all_written(spec, more, false);
            let flags: Vec<String> = words.iter().map(|w| format!("--listen {w}")).collect();
            format!("`{}`", flags.join(" "))
        }
    }
}

fn only_listen(spec: &AppSpec, addr: SocketAddr) -> String {
    match spec.source {
        Some(_) => format!("`listen = {}`", written(addr, true, true)),
        None => format!("`--listen {}`", written(addr, true, false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_app_for_this_machine_that_others_reach() {
        for (configured, asked, noted) in [
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("10.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", false),
            ("[::1]:80", "127.0.0.1:80", false),
            ("0.0.0.0:80", "0.0.0.0:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", false),
        ] {
            let note = public_note(addr(configured), addr(asked));
            assert_eq!(note.is_some(), noted, "{configured} {asked}: {note:?}");
        }
    }

    #[test]
    fn addresses_as_users_write_them() {
        assert_eq!(written(addr("0.0.0.0:9090"), true, true), "9090");
        assert_eq!(
            written(addr("127.0.0.1:9090"), true, true),
            "\"127.0.0.1:9090\""
        );
        assert_eq!(written(addr("[::]:80"), true, false), "80");
        assert_eq!(written(addr("0.0.0.0:80"), false, true), "\"0.0.0.0:80\"");
    }
}
