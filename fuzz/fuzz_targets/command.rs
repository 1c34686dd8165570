//! `rsup start WORDS…` with any words and options.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rsup::config::Script;

#[derive(Arbitrary, Debug)]
struct Words {
    name: Option<String>,
    command: Vec<String>,
    instances: Option<String>,
    listen: Vec<String>,
    env: Vec<String>,
    readiness: Option<String>,
    liveness: Option<String>,
    max_memory: Option<String>,
    balance: Option<String>,
    listen_timeout: Option<String>,
    drain_timeout: Option<String>,
    kill_timeout: Option<String>,
    stop_signal: Option<String>,
    socket_activation: bool,
}

fuzz_target!(|words: Words| {
    let script = Script {
        name: words.name,
        command: words.command,
        instances: words.instances,
        listen: words.listen,
        env: words.env,
        env_file: Vec::new(),
        cwd: "/nowhere".into(),
        readiness: words.readiness,
        liveness: words.liveness,
        max_memory: words.max_memory,
        balance: words.balance,
        listen_timeout: words.listen_timeout,
        drain_timeout: words.drain_timeout,
        kill_timeout: words.kill_timeout,
        stop_signal: words.stop_signal,
        socket_activation: words.socket_activation,
        // A name would be looked up on this machine.
        user: None,
    };
    rsup_fuzz::command_line(&script);
});
