"""Two network namespaces with a veth pair for each path, and the project's programs in them."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

EXPORT = "disk0"
NEIGHBOURS_EXPORT = "disk1"
PORT = "1234"
IMAGE_BYTES = 64 << 20
SOON_SECONDS = 60


def run(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True)


def wait_until(what, ready, seconds=SOON_SECONDS):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Network:
    """Path n is 10.99.n.0/24: the target has .1, the initiator has .2."""

    def __init__(self, paths):
        self.paths = range(paths)
        self.spaces = {side: f"rnbd-{side}-{os.getpid()}" for side in ("tgt", "ini")}
        for space in self.spaces.values():
            run("ip", "netns", "add", space)
        for path in self.paths:
            self._lay(path)

    def _lay(self, path):
        ends = {side: f"{side}{path}" for side in self.spaces}
        # Born in a namespace of ours, so that no name of the host's can be taken.
        run("ip", "-n", self.spaces["tgt"], "link", "add", ends["tgt"], "type", "veth",
            "peer", "name", ends["ini"], "netns", self.spaces["ini"])
        for number, side in enumerate(self.spaces, 1):
            run("ip", "-n", self.spaces[side], "addr", "add", f"10.99.{path}.{number}/24",
                "dev", ends[side])
            run("ip", "-n", self.spaces[side], "link", "set", ends[side], "up")

    def within(self, side):
        return ["ip", "netns", "exec", self.spaces[side]]

    def link(self, path, state):
        run("ip", "-n", self.spaces["tgt"], "link", "set", f"tgt{path}", state)

    def throttle(self, path, on):
        """What goes to the initiator waits in the queue of a slow link, and some is lost there."""
        verb = ["replace"] if on else ["del"]
        rate = ["tbf", "rate", "8mbit", "burst", "16kb", "latency", "40ms"] if on else []
        run("tc", "-n", self.spaces["tgt"], "qdisc", *verb, "dev", f"tgt{path}", "root", *rate)

    def lose(self, percent):
        """Drops packets by chance on the way to the target, on all paths; 0 ends it."""
        nft = [*self.within("tgt"), "nft"]
        run(*nft, "flush", "ruleset")
        if percent:
            run(*nft, "add table inet faults; add chain inet faults input "
                "{ type filter hook input priority 0; }; add rule inet faults input "
                f"numgen random mod 100 < {percent} drop")

    def close(self):
        for space in self.spaces.values():
            run("ip", "netns", "del", space, check=False)


class Program:
    """A running rnbd_tgt or rnbd_perf, and its RPC."""

    def __init__(self, command, folder, name):
        self.socket = folder / f"{name}.sock"
        self.socket.unlink(missing_ok=True)
        self.log = open(folder / f"{name}.log", "a")
        self.process = subprocess.Popen([*command, "-r", str(self.socket)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True)

    def call(self, method, **params):
        request = {"jsonrpc": "2.0", "id": 1, "method": method}
        if params:
            request["params"] = params
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SOON_SECONDS)
            connection.connect(str(self.socket))
            connection.sendall(json.dumps(request).encode())
            text = ""
            while True:
                text += connection.recv(1 << 16).decode()
                with contextlib.suppress(json.JSONDecodeError):
                    answer = json.loads(text)
                    break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.process.args} ended; see {self.log.name}")
        with contextlib.suppress(OSError, RuntimeError):
            self.call("spdk_get_version")
            return True
        return False

    def send(self, number):
        self.process.send_signal(number)

    def usage(self):
        """Open descriptors, and resident bytes."""
        proc = pathlib.Path(f"/proc/{self.process.pid}")
        lines = (proc / "status").read_text().splitlines()
        rss = next(line for line in lines if line.startswith("VmRSS"))
        return len(list((proc / "fd").iterdir())), int(rss.split()[1]) << 10

    def end(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.send(number)
        self.process.wait()
        self.log.close()


class Lab:
    """A target with a device that outlives it, and an initiator with a load that checks itself."""

    SESSION = "faults"

    def __init__(self, programs, paths):
        self.programs = programs
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rnbd-faults-"))
        self.network = Network(paths)
        (self.folder / "disk.img").write_bytes(bytes(0))
        os.truncate(self.folder / "disk.img", IMAGE_BYTES)
        self.target = self.perf = None
        self.start_target()

    def _write_config(self, name, subsystem, calls):
        config = [{"method": method, "params": params} for method, params in calls]
        path = self.folder / name
        path.write_text(json.dumps({"subsystems": [{"subsystem": subsystem, "config": config}]}))
        return str(path)

    def start_target(self):
        calls = [
            ("bdev_uring_create", {"name": "Image", "filename": str(self.folder / "disk.img"),
                                   "block_size": 4096}),
            ("rtrs_create_transport", {"trtype": "TCP"}),
        ]
        for path in self.network.paths:
            address = {"trtype": "TCP", "traddr": f"10.99.{path}.1", "trsvcid": PORT}
            calls.append(("rtrs_add_listener", {"listen_address": address}))
        calls.append(("bdev_malloc_create", {"name": "Ram", "num_blocks": IMAGE_BYTES // 4096,
                                             "block_size": 4096}))
        for device, bdev in ((EXPORT, "Image"), (NEIGHBOURS_EXPORT, "Ram")):
            calls.append(("rnbd_create_export", {"device_path": device, "bdev_name": bdev,
                                                 "allow_any_host": True}))
        config = self._write_config("target.json", "bdev", calls)
        command = [*self.network.within("tgt"), self.programs / "rnbd_tgt", "-m", "[0]",
                   "--reactor-mode", "adaptive", "--disable-cpumask-locks", "-c", config]
        self.target = Program(command, self.folder, "target")
        wait_until("the target answers", self.target.answers)

    def route(self, path):
        return {"traddr": f"10.99.{path}.1", "trsvcid": PORT, "hostaddr": f"10.99.{path}.2"}

    def start_perf(self, seconds):
        common = {"name": "c", "sessname": self.SESSION, "trtype": "TCP", "reconnect_delay_sec": 1,
                  "multipath": "multipath", "multipath_opts": {"policy": "round_robin"}}
        options = {"bdev_retry_count": -1, "reconnect_jitter_sec": 0, "io_timeout_ms": 0,
                   "peer_hb_interval_ms": 250, "peer_hb_missed_max": 3}
        calls = [("bdev_rnbd_set_options", options)]
        for path in self.network.paths:
            first = {"devices": [{"device_path": EXPORT}]} if path == 0 else {}
            calls.append(("bdev_rnbd_attach_controller",
                          {**common, **self.route(path), **first}))
        config = self._write_config("perf.json", "bdev", calls)
        command = [*self.network.within("ini"), self.programs / "rnbd_perf", "-m", "[1]",
                   "--reactor-mode", "adaptive", "--disable-cpumask-locks", "-c", config,
                   "-w", "verify", "-o", "4096", "-q", "16", "-t", str(seconds), "--json", "-"]
        self.perf = Program(command, self.folder, "perf")
        wait_until("the load answers", self.perf.answers)
        wait_until("the load is on", lambda: self.done() > 100)

    def neighbour_dies(self):
        """Kills a client of another device a second after its I/O has begun."""
        attach = f"trtype=TCP,traddr=10.99.0.1,trsvcid={PORT},device={NEIGHBOURS_EXPORT}"
        command = [*self.network.within("ini"), self.programs / "rnbd_perf", "-m", "[1]",
                   "--reactor-mode", "adaptive", "--disable-cpumask-locks", "--attach", attach,
                   "-w", "randrw", "-o", "4096", "-q", "16", "-t", "60"]
        neighbour = Program(command, self.folder, "neighbour")
        try:
            wait_until("the neighbour answers", neighbour.answers)
            time.sleep(1)
        finally:
            neighbour.end(signal.SIGKILL)

    def done(self):
        """I/Os that have ended well so far."""
        with contextlib.suppress(OSError, RuntimeError, KeyError, IndexError):
            bdev = self.perf.call("bdev_get_iostat", names=["c_disk0"])["bdevs"][0]
            return bdev["num_read_ops"] + bdev["num_write_ops"]
        return 0

    def report(self):
        """Waits for the end of the load, in which no I/O may have failed and no byte be wrong."""
        text, _ = self.perf.process.communicate()
        if self.perf.process.returncode != 0:
            raise RuntimeError(f"the load ended with {self.perf.process.returncode}:\n{text}")
        return json.loads(text[text.index("{"):])

    def close(self):
        for program in (self.perf, self.target):
            if program:
                program.end()
        self.network.close()
