//! Workers share the description of their listening socket with rsup, and so its mode.

use crate::attackers::{answers_until, ends, evil, open_home};
use crate::bystander::Bystander;

/// It serves for a moment, and then switches O_NONBLOCK off and on as fast as it can, while it fills its own
/// queue, from addresses of rsup's probes too, and answers nothing.
const TOGGLES: &str = r#"
import fcntl, os, signal, socket, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
port = int(os.environ["PORT"])
listener = socket.socket()
listener.bind(("127.0.0.1", port))
listener.listen(64)
listener.setblocking(True)
begun = time.monotonic()
while time.monotonic() - begun < 1:
    listener.settimeout(0.1)
    try:
        listener.accept()[0].close()
    except OSError:
        pass
number = listener.fileno()
def toggle():
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    while True:
        fcntl.fcntl(number, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_NONBLOCK)
threading.Thread(target=toggle, daemon=True).start()
turn = 0
while True:
    turn += 1
    client = socket.socket()
    client.setblocking(False)
    try:
        if turn % 2:
            client.bind(("127.83.0.%d" % (1 + turn % 6), 0))
        client.connect_ex(("127.0.0.1", port))
        time.sleep(0.002)
    except OSError:
        pass
    client.close()
"#;

#[test]
fn a_worker_that_switches_its_mode_holds_up_nothing() {
    let Some(home) = open_home() else { return };
    let calm = Bystander::start(&home);
    let port = home.port();
    let keys = format!(
        "listen = \"127.0.0.1:{port}\"\ninstances = 2\nkill_timeout = \"1s\"\nreload.min_ready = \"0s\"\n\
         liveness = {{ tcp = true, interval = \"100ms\", timeout = \"100ms\", failure_threshold = 1 }}\n\
         restart = {{ max_restarts = 1000, backoff = \"10ms\", backoff_max = \"100ms\" }}"
    );
    if !evil(&home, TOGGLES, &keys) {
        return;
    }
    home.ok(&["start"]);
    let mut seen = std::collections::BTreeSet::new();
    answers_until(&home, "ten of its workers were replaced", || {
        seen.extend(home.pids("evil"));
        seen.len() >= 12
    });
    ends(&home);
    calm.untouched(&home);
}
