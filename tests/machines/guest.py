"""What is tried inside a machine: see README.md. Only what every Python 3 has by itself."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
import socket
import traceback

RSUP = "/usr/local/bin/rsup"
PATIENCE = 60
KILLS = 10
MEMORY = 200 << 20
TASKS = 64

LIMITS = f"limits = {{ memory = {MEMORY}, tasks = {TASKS} }}\n"
CGROUPS = "/sys/fs/cgroup"


class Failed(Exception):
    pass


def say(word, text):
    first, *rest = str(text).splitlines() or [""]
    print(f"{word} {first}", *(f"     {line}" for line in rest), sep="\n", flush=True)


def run(words, check=True, env=None, **more):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=180, env=env, **more)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait(what, test, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while True:
        try:
            found = test()
            if found:
                return found
            last = found
        except (Failed, OSError, ValueError, KeyError, IndexError) as error:
            last = error
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {patience} s; last seen: {last}")
        time.sleep(0.05)


def read(path):
    with open(path) as file:
        return file.read().strip()


class Load:
    """A connection for each request, from two threads. What fails is counted and kept."""

    def __init__(self, port):
        self.port, self.over, self.good, self.bad = port, False, 0, []
        self.threads = [threading.Thread(target=self.go) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def go(self):
        while not self.over:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=30) as to:
                    to.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = b""
                    while True:
                        some = to.recv(4096)
                        if not some:
                            break
                        answer += some
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise OSError(f"answer {answer[:40]!r}")
                self.good += 1
                # The machine is an emulated one, and rsup is to have some of it.
                time.sleep(0.02)
            except OSError as error:
                self.bad.append(str(error))

    def end(self):
        self.over = True
        for thread in self.threads:
            thread.join()
        if self.bad or not self.good:
            raise Failed(f"{len(self.bad)} of {len(self.bad) + self.good} requests lost: {self.bad[:3]}")
        return f"0 of {self.good} requests lost"


class Service:
    """rsup as a unit of the system, or of alice."""

    def __init__(self, user, limits, port):
        self.user, self.limits, self.port = user, limits, port
        self.name = f"{'user' if user else 'system'} unit, {'with' if limits else 'without'} limits"
        self.config = f"/srv/{port}.toml"
        self.write_config(limits)
        self.folder = "/home/alice/.config/systemd/user" if user else "/etc/systemd/system"

    def write_config(self, limits):
        with open(self.config, "w") as file:
            file.write(f'[app.web]\ncommand = ["{RSUP}", "sample-app"]\ninstances = 2\nlisten = "127.0.0.1:{self.port}"\n'
                       'readiness = "/readiness"\nkill_timeout = "15s"\ndrain_timeout = "2s"\n' + (LIMITS if limits else ""))

    def call(self, *words, check=True):
        if not self.user:
            return run(list(words), check)
        env = {"HOME": "/home/alice", "XDG_RUNTIME_DIR": "/run/user/4711", "PATH": "/usr/local/bin:/usr/bin:/bin",
               "USER": "alice"}
        return run(["setpriv", "--reuid=4711", "--regid=4711", "--init-groups", *words], check, env)

    def rsup(self, *words, check=True):
        return self.call(RSUP, *words, check=check)

    def systemctl(self, *words, check=True):
        return self.call("systemctl", *(["--user"] if self.user else []), *words, check=check)

    def show(self, name):
        return self.systemctl("show", "--value", "-p", name, "rsup.service").stdout.strip()

    def unit_cgroup(self):
        return CGROUPS + wait("its cgroup", lambda: self.show("ControlGroup"))

    def main(self):
        return int(self.show("MainPID"))

    def view(self):
        return json.loads(self.rsup("list", "--json").stdout)[0]

    def workers(self):
        return {worker["pid"] for worker in self.view()["workers"]}

    def ready(self):
        workers = self.view()["workers"]
        return len(workers) == 2 and all(w["phase"] == "ready" for w in workers)

    def check_limits(self):
        """Of every worker, as the kernel has them."""
        for pid in self.workers():
            leaf = cgroup_of(pid)
            if self.limits:
                has = (read(f"{leaf}/memory.max"), read(f"{leaf}/pids.max"))
                if has != (str(MEMORY), str(TASKS)):
                    raise Failed(f"limits of worker {pid} in {leaf}: {has}")
            elif read(f"{os.path.dirname(leaf)}/cgroup.subtree_control"):
                raise Failed(f"controllers are enabled in {os.path.dirname(leaf)}")
        if not self.limits and read(f"{self.unit_cgroup()}/cgroup.subtree_control"):
            raise Failed("controllers are enabled in the unit's cgroup")

    def kill_main(self):
        before = self.main()
        os.kill(before, 9)
        wait("another main process", lambda: self.main() not in (0, before))
        wait("it answers", lambda: self.rsup("ping", check=False).returncode == 0)

    def unit_text(self):
        return read(f"{self.folder}/rsup.service")

    def write_unit(self, change):
        text = change(self.unit_text() + "\n")
        with open(f"{self.folder}/rsup.service", "w") as file:
            file.write(text)
        self.systemctl("daemon-reload")

    def slow_requests(self):
        """Some that keep workers busy; what is returned waits for their answers."""
        answers = []

        def one():
            try:
                url = f"http://127.0.0.1:{self.port}/slow?ms=6000"
                answers.append(urllib.request.urlopen(url, timeout=60).getcode())
            except OSError as error:
                answers.append(str(error))

        clients = [threading.Thread(target=one) for _ in range(4)]
        for client in clients:
            client.start()
        wait("the requests", lambda: read_by_app(self.port) >= len(clients))

        def end():
            for client in clients:
                client.join()
            if answers != [200] * len(clients):
                raise Failed(f"answers: {answers}")
            return len(clients)

        return end

    # What is tried, in this order.

    def startup(self):
        self.rsup("startup", self.config)
        self.rsup("start", self.config)
        wait("the app", self.ready)
        self.check_limits()
        lines = [line for line in self.unit_text().splitlines() if line.startswith(("ExecStopPost", "DelegateSub"))]
        return "\n".join(["ready", *lines])

    def kills(self):
        before, load = self.workers(), Load(self.port)
        slowest = 0.0
        for _ in range(KILLS):
            began = time.monotonic()
            self.kill_main()
            slowest = max(slowest, time.monotonic() - began)
            self.check_limits()
            if self.workers() != before:
                raise Failed(f"workers were {before}, and are {self.workers()}")
        result = load.end()
        return f"{KILLS} kills of the main process, the same workers after each; {result}; back after {slowest:.1f} s at the most"

    def worker_killed(self):
        one = sorted(self.workers())[0]
        os.kill(one, 9)
        wait("another worker", lambda: one not in self.workers() and self.ready())
        self.check_limits()
        return "another one is ready, with the same limits"

    def memory(self):
        """Of a worker that was adopted: what it takes from now on is counted."""
        if not self.limits:
            return None
        one = sorted(self.workers())[-1]
        self.kill_main()
        # Until it happens to be that one.
        for _ in range(40):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/leak?mb=60", timeout=30).read()
            except OSError:
                pass
            if one not in self.workers():
                break
        wait("the end of it", lambda: one not in self.workers() and self.ready())
        events = self.rsup("describe", "web").stdout
        if "memory limit" not in events:
            raise Failed(f"no memory limit in\n{events}")
        self.check_limits()
        return "an adopted worker that takes more is killed at its limit and replaced"

    def reload(self):
        before, load = self.workers(), Load(self.port)
        self.systemctl("reload", "rsup.service")
        after = self.workers()
        result = load.end()
        if before & after:
            raise Failed(f"{before} {after}")
        self.check_limits()
        return f"every worker is another; {result}"

    def restart(self):
        self.kill_main()
        before = self.workers()
        self.systemctl("restart", "rsup.service")
        wait("the app", self.ready)
        if before & self.workers():
            raise Failed("the same workers")
        self.check_limits()
        return "exit 0, other workers, the same limits"

    def other_limits(self):
        """Limits come and go with a reload, between deaths."""
        mine = self.limits
        for limits in (not mine, mine):
            self.limits = limits
            self.write_config(limits)
            self.rsup("reload", "web")
            for pid in self.workers():
                leaf = cgroup_of(pid)
                has = read(f"{leaf}/memory.max") if os.path.exists(f"{leaf}/memory.max") else "max"
                if has != (str(MEMORY) if limits else "max"):
                    raise Failed(f"memory.max of {pid} is {has}")
            self.kill_main()
            wait("the app", self.ready)
        return "limits that a reload brings or takes away survive a kill"

    def killed_while_stopping(self):
        """There is no next rsup, and nobody but ExecStopPost= for the workers."""
        workers, main = self.workers(), self.main()
        end = self.slow_requests()
        self.systemctl("stop", "--no-block", "rsup.service")
        wait("the stop", lambda: self.show("ActiveState") == "deactivating")
        os.kill(main, 9)
        wait("the end of it", lambda: self.show("ActiveState") in ("inactive", "failed"))
        left = [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
        count = end()
        if left:
            raise Failed(f"left: {left}")
        self.systemctl("reset-failed", "rsup.service", check=False)
        self.systemctl("start", "rsup.service")
        wait("the app", self.ready)
        self.check_limits()
        workers, main = self.workers(), self.main()
        end = self.slow_requests()
        self.systemctl("restart", "--no-block", "rsup.service")
        wait("the stop", lambda: self.show("ActiveState") == "deactivating")
        os.kill(main, 9)
        wait("another main process", lambda: self.show("ActiveState") == "active" and self.main() != main)
        end()
        wait("the app", lambda: self.ready() and not workers & self.workers())
        self.check_limits()
        return (f"systemctl stop, and rsup killed in it: the workers are stopped, {count} slow requests answered before; "
                "the same with restart: other workers, the same limits")

    def older_unit(self):
        """As rsup wrote it before, for an older systemd: the first kill is the end."""
        def older(text):
            return "".join(line for line in text.splitlines(True)
                           if not line.startswith(("ExecStopPost", "DelegateSubgroup", "# Form")))
        self.write_unit(older)
        self.systemctl("restart", "rsup.service")
        wait("the app", self.ready)
        told = self.rsup("list")
        if "rsup startup" not in told.stderr:
            raise Failed(f"rsup list says nothing of the unit:\n{told.stderr}")
        if not self.limits:
            self.kills()
            self.rsup("startup", self.config)
            return "rsup list names it; kills are survived; rsup startup writes it anew"
        workers, restarts = self.workers(), int(self.show("NRestarts"))
        os.kill(self.main(), 9)
        wait("the failures", lambda: int(self.show("NRestarts")) > restarts + 3)
        told = self.rsup("list", check=False)
        # The latter since systemd 255, which starts a helper in the cgroup first.
        reason = re.search("219/CGROUP|result resources", told.stderr)
        if told.returncode == 0 or not reason or "rsup startup" not in told.stderr:
            raise Failed(f"rsup list: exit {told.returncode}\n{told.stdout}{told.stderr}")
        say("INFO", f"rsup list with an older unit: exit {told.returncode}\n{told.stderr}")
        self.rsup("startup", self.config)
        wait("the app", self.ready)
        if self.workers() != workers:
            raise Failed("other workers")
        self.check_limits()
        self.kill_main()
        self.check_limits()
        return f"rsup list names it, and after a kill says {reason[0]}, exit 1; rsup startup brings the same workers back"

    def no_program(self):
        """systemd cannot start what is not there."""
        os.rename(RSUP, "/srv/rsup")
        try:
            os.kill(self.main(), 9)
            # Where the cgroup has controllers that only the program could disable, systemd comes no farther than that.
            wait("the failure", lambda: self.show("ExecMainStatus") in ("203", "219"))
            told = self.call("/srv/rsup", "list", check=False)
        finally:
            os.rename("/srv/rsup", RSUP)
        reason = re.search("203/EXEC|219/CGROUP", told.stderr)
        if told.returncode == 0 or not reason:
            raise Failed(f"rsup list: exit {told.returncode}\n{told.stdout}{told.stderr}")
        wait("the app", self.ready)
        self.check_limits()
        return f"rsup list says {reason[0]}, exit 1; when the program is back, so is the daemon, with the same limits"

    def stop(self):
        self.kill_main()
        workers, folder = self.workers(), self.unit_cgroup()
        self.systemctl("stop", "rsup.service")
        left = [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
        if left or self.show("ActiveState") != "inactive" or self.show("Result") != "success":
            raise Failed(f"{left} {self.show('ActiveState')} {self.show('Result')}")
        wait("the end of its cgroup", lambda: not os.path.exists(folder))
        self.forget()
        return "exit 0, no worker and no cgroup is left"

    CASES = [startup, kills, worker_killed, memory, reload, restart, other_limits, killed_while_stopping, older_unit, no_program, stop]

    def forget(self):
        """Nothing is left for the next one."""
        self.rsup("kill", check=False)
        self.rsup("unstartup", check=False)
        run(["rm", "-rf", "/home/alice/.local/state/rsup" if self.user else "/var/lib/rsup"])

    def journal(self):
        words = ["journalctl", "-t", "rsup", "-t", "systemd", "-n", "40", "-o", "short-monotonic", "--no-pager"]
        return run(words, False).stdout


def read_by_app(port):
    """Connections to this port of which everything has been read (/proc/net/tcp)."""
    fields = [line.split() for line in read("/proc/net/tcp").splitlines()[1:]]
    return sum(f[1].endswith(f":{port:04X}") and f[3] == "01" and f[4].endswith(":00000000") for f in fields)


def cgroup_of(pid):
    return CGROUPS + re.search(r"^0::(.*)$", read(f"/proc/{pid}/cgroup"), re.M)[1]


def main(wanted):
    run(["mount", "-o", "remount,rw", "/"], False)
    run(["cp", "/mnt/rsup", RSUP])
    version = run(["systemctl", "--version"]).stdout.splitlines()[0]
    say("INFO", f"{version}, kernel {os.uname().release}, {run([RSUP, '--version']).stdout.strip()}")
    wait("alice's manager", lambda: run(["systemctl", "is-active", "user@4711.service"], False).stdout.strip() == "active")
    failed, port = 0, 3000
    for user in (False, True):
        for limits in (False, True):
            port += 1
            if wanted and ("system" if user else "user") in wanted:
                continue
            service = Service(user, limits, port)
            for case in Service.CASES:
                names = set(wanted) - {"system", "user"}
                if names and case.__name__ not in names and case.__name__ not in ("startup", "stop"):
                    continue
                began = time.monotonic()
                try:
                    result = case(service)
                    if result:
                        say("PASS", f"{service.name}: {case.__name__}: {result} [{time.monotonic() - began:.0f} s]")
                except Exception as error:
                    failed += 1
                    about = error if isinstance(error, Failed) else traceback.format_exc()
                    say("FAIL", f"{service.name}: {case.__name__}: {about}\n{service.journal()}")
                    service.forget()
                    break
    say("INFO", f"{failed} failed, {time.monotonic():.0f} s since boot")
    print("DONE", flush=True)


try:
    main(sys.argv[1:])
except BaseException:
    say("FAIL", traceback.format_exc())
