#!/usr/bin/env python3
"""RDMA devices and links that go and come back under load that checks itself.

    device_faults.py [--rounds N] [--only TEXT] [--load SECONDS] SCENARIO…

Runs in the guest. Prints a row for each fault of each scenario: how long deleting a device took,
how long no I/O ended well, each as the median and the worst. Ends with an error if a deletion
takes more than 3 s, if I/O does not go on by itself, if one fails that may not, or if a byte is
wrong.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time

SOURCES = pathlib.Path(os.environ["RNBD_SOURCES"])
PROGRAMS = pathlib.Path(os.environ["RNBD_PROGRAMS"])
MODULES = pathlib.Path(os.environ["RNBD_MODULES"])
LOGS = pathlib.Path("/run/job")
# Sockets cannot be in the job folder, which is this machine's; logs are to be.
SOCKETS = pathlib.Path("/run/faults")
GUEST = pathlib.Path(__file__).resolve().parent

sys.path.insert(0, str(SOURCES / "test/faults"))
from lab import Program, run, wait_until  # noqa: E402

NETDEVS = {"rxe0": "d0", "rxe1": "d1", "cable0": "wire0", "cable1": "wire1"}
DELETED_WITHIN = 3.0
BLOCKS = 256


# Devices and links.


def delete(*devices):
    """Deletes devices at the same time; returns how long the slowest took."""
    times = {}

    def one(device):
        start = time.monotonic()
        run("rdma", "link", "delete", device)
        times[device] = time.monotonic() - start

    threads = [threading.Thread(target=one, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(times) < len(devices):
        raise RuntimeError(f"of {devices} only {list(times)} could be deleted")
    return max(times.values())


def add(*devices):
    for device in devices:
        run("rdma", "link", "add", device, "type", "rxe", "netdev", NETDEVS[device])


def link_down(seconds):
    """Pulls the target's plug out of the switch."""
    run("ip", "link", "set", "plug1", "down")
    time.sleep(seconds)
    run("ip", "link", "set", "plug1", "up")


# Programs.


class Target:
    """Ours, with a device that outlives it."""

    def __init__(self, disk, addresses):
        self.disk, self.addresses = disk, addresses
        self.start()

    def start(self):
        calls = [
            ("bdev_uring_create", {"name": "Disk", "filename": self.disk, "block_size": 512}),
            ("rtrs_create_transport", {"trtype": "RDMA"}),
            ("rnbd_create_export", {"device_path": "disk", "bdev_name": "Disk",
                                    "allow_any_host": True}),
        ]
        for address in self.addresses:
            address = {"trtype": "RDMA", "traddr": address, "trsvcid": "1234"}
            calls.append(("rtrs_add_listener", {"listen_address": address}))
        self.program = start_program("target", "rnbd_tgt", "[1]", calls)

    def restart(self, number):
        self.program.end(number)
        self.start()


def start_program(name, binary, core, calls, *options):
    config = LOGS / f"{name}.json"
    calls = [{"method": method, "params": params} for method, params in calls]
    config.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": calls}]}))
    command = [PROGRAMS / binary, "-m", core, "--reactor-mode", "adaptive",
               "--disable-cpumask-locks", "-c", str(config), *options]
    SOCKETS.mkdir(exist_ok=True)
    log = SOCKETS / f"{name}.log"
    if not log.is_symlink():
        log.symlink_to(LOGS / log.name)
    program = Program(command, SOCKETS, name)
    wait_until(f"{name} answers", program.answers)
    return program


class OurLoad:
    """rnbd_perf over one path or several: each is the initiator's and the target's address."""

    def __init__(self, paths, device_path, seconds):
        common = {"name": "c", "sessname": "faults", "trtype": "RDMA", "reconnect_delay_sec": 1}
        if len(paths) > 1:
            common |= {"multipath": "multipath", "multipath_opts": {"policy": "round_robin"}}
        options = {"bdev_retry_count": -1, "reconnect_jitter_sec": 0, "io_timeout_ms": 10000,
                   "peer_hb_interval_ms": 500, "peer_hb_missed_max": 8}
        calls = [("bdev_rnbd_set_options", options)]
        for number, (own, peer) in enumerate(paths):
            route = {"traddr": peer, "trsvcid": "1234", "hostaddr": own}
            first = {} if number else {"devices": [{"device_path": device_path,
                                                    "bdev_name": "disk0"}]}
            calls.append(("bdev_rnbd_attach_controller", {**common, **route, **first}))
        self.program = start_program("perf", "rnbd_perf", "[0]", calls, "-w", "verify", "-o",
                                     "4096", "-q", "8", "-t", str(seconds), "--json", "-")
        wait_until("the load is on", lambda: self.done() > 20)

    def done(self):
        with contextlib.suppress(OSError, RuntimeError, KeyError, IndexError):
            bdev = self.program.call("bdev_get_iostat", names=["disk0"])["bdevs"][0]
            return bdev["num_read_ops"] + bdev["num_write_ops"]
        return 0

    def end(self):
        """In its load no I/O may have failed and no byte be wrong."""
        text, _ = self.program.process.communicate()
        if self.program.process.returncode != 0:
            raise RuntimeError(f"the load ended with {self.program.process.returncode}:\n{text}")

    def abort(self):
        self.program.end()


class KernelLoad:
    """stamps.py on a device of the kernel's client, on which writes may fail for a while."""

    def __init__(self, device):
        self.device = device
        self.report = LOGS / "stamps.report"
        self.report.unlink(missing_ok=True)
        command = ["python3", GUEST / "stamps.py", device, str(BLOCKS), self.report]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wait_until("the load is on", lambda: self.done() > 0)

    def done(self):
        """Whatever is different whenever writes have succeeded."""
        with contextlib.suppress(OSError):
            if not self.report.read_text().endswith("writing\n"):
                return -1
            return int(pathlib.Path(f"/sys/block/{self.device[5:]}/stat").read_text().split()[4])
        return -1

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        text, _ = self.process.communicate()
        if self.process.returncode != 0:
            raise RuntimeError("the kernel's device lost something")
        print(f"    ({text.strip()})", flush=True)

    def abort(self):
        self.process.kill()


class Watch:
    """Looks at the load all the time and remembers the longest time in which no I/O ended well."""

    def __init__(self, load):
        self.load, self.worst = load, 0.0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self):
        last, since = self.load.done(), time.monotonic()
        while not self.is_over.wait(0.02):
            done, now = self.load.done(), time.monotonic()
            self.worst = max(self.worst, now - since)
            if done not in (last, -1):
                last, since = done, now

    def end(self):
        self.is_over.set()
        self.thread.join()
        return self.worst


def goes_on(load, seconds=60):
    before = load.done()
    wait_until("I/O goes on", lambda: load.done() not in (before, -1), seconds)
    again = load.done()
    wait_until("I/O goes on", lambda: load.done() not in (again, -1), seconds)


# Kernel peers.


def insmod(*names):
    loaded = pathlib.Path("/proc/modules").read_text()
    for name in ("rtrs-core", *names):
        if f"{name.replace('-', '_')} " not in loaded:
            run("insmod", str(MODULES / f"{name}.ko"))


def kernel_map(own, peer):
    insmod("rtrs-client", "rnbd-client")
    text = f"sessname=faults path=ip:{own},ip:{peer} device_path=disk"
    pathlib.Path("/sys/devices/virtual/rnbd-client/ctl/map_device").write_text(text)
    wait_until("the device is there", lambda: pathlib.Path("/dev/rnbd0").exists())
    return "/dev/rnbd0"


def kernel_unmap():
    pathlib.Path("/sys/block/rnbd0/rnbd/unmap_device").write_text("force")


# Faults: each returns how long a deletion took, or None.


def gone_for(seconds, *devices):
    def fault(_lab):
        took = delete(*devices)
        time.sleep(seconds)
        add(*devices)
        return took
    return fault


def cut_for(seconds):
    def fault(_lab):
        link_down(seconds)
    return fault


def restart(number):
    def fault(lab):
        lab.target.restart(number)
    return fault


def reset(device):
    def fault(lab):
        lab.target.program.call("rdma_reset_device", name=device)
    return fault


class Lab:
    """One scenario: who serves, who loads, over what."""

    def __init__(self, scenario, seconds):
        self.scenario, self.seconds = scenario, seconds
        self.target = None
        disk = scenario.get("disk", "/dev/ram0")
        if scenario["server"] == "ours":
            self.target = Target(disk, [peer for _, peer in scenario["paths"]])
        else:
            insmod("rtrs-server", "rnbd-server")
        if scenario["client"] == "kernel":
            self.device = kernel_map(*scenario["paths"][0])

    def start_load(self):
        if self.scenario["client"] == "kernel":
            return KernelLoad(self.device)
        path = "disk" if self.target else self.scenario.get("disk", "/dev/ram0")
        return OurLoad(self.scenario["paths"], path, self.seconds)

    def close(self):
        if self.scenario["client"] == "kernel":
            kernel_unmap()
        if self.target:
            self.target.program.end(signal.SIGTERM)


CABLE = [("10.9.2.1", "10.9.2.2")]
LOOPS = [("10.9.0.1", "10.9.0.1"), ("10.9.1.1", "10.9.1.1")]

SCENARIOS = {
    "ours-to-ours": {
        "server": "ours", "client": "ours", "paths": CABLE,
        "faults": {
            "link down 3 s": cut_for(3),
            "target's device deleted, added after 1 s": gone_for(1, "cable1"),
            "initiator's device deleted, added after 1 s": gone_for(1, "cable0"),
            "both devices deleted at once, added after 1 s": gone_for(1, "cable0", "cable1"),
            "target's device reset": reset("cable1"),
            "target restarted": restart(signal.SIGTERM),
            "target killed and started": restart(signal.SIGKILL),
        },
    },
    "two-paths": {
        "server": "ours", "client": "ours", "paths": LOOPS,
        "faults": {
            "one of two devices deleted, added after 1 s": gone_for(1, "rxe0"),
            "both devices deleted at once, added after 1 s": gone_for(1, "rxe0", "rxe1"),
            "all devices of the host deleted at once, added after 1 s":
                gone_for(1, "rxe0", "rxe1", "cable0", "cable1"),
            "one of two devices reset": reset("rxe1"),
        },
    },
    "kernel-to-ours": {
        "server": "ours", "client": "kernel", "paths": CABLE,
        "faults": {
            "link down 3 s": cut_for(3),
            "target's device deleted, added after 1 s": gone_for(1, "cable1"),
            "target's device reset": reset("cable1"),
            "target killed and started": restart(signal.SIGKILL),
        },
    },
    "ours-to-kernel": {
        "server": "kernel", "client": "ours", "paths": CABLE,
        "faults": {
            "link down 3 s": cut_for(3),
            "initiator's device deleted, added after 1 s": gone_for(1, "cable0"),
            "server's device deleted, added after 1 s": gone_for(1, "cable1"),
        },
    },
}


def one_round(lab, fault):
    load = lab.start_load()
    watch = Watch(load)
    try:
        took = fault(lab)
        goes_on(load)
    except BaseException:
        explain(lab, load)
        watch.end()
        load.abort()
        raise
    gap = watch.end()
    load.end()
    return took, gap


def explain(lab, load):
    """What the threads of our programs wait for, for whoever reads of the failure."""
    programs = [lab.target and lab.target.program, getattr(load, "program", None)]
    for program in filter(None, programs):
        command = ["gdb", "-batch", "-ex", "thread apply all backtrace 12", "-p",
                   str(program.process.pid)]
        with contextlib.suppress(OSError):
            text = subprocess.run(command, check=False, capture_output=True, text=True).stdout
            print("\n".join(line for line in text.splitlines() if not line.startswith("[New")))


def figures(values):
    values = [value for value in values if value is not None]
    if not values:
        return " | "
    return f"{statistics.median(values):.2f} | {max(values):.2f}"


def play(name, arguments):
    scenario = SCENARIOS[name]
    lab = Lab(scenario, arguments.load)
    for label, fault in scenario["faults"].items():
        if arguments.only not in label:
            continue
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(one_round(lab, fault))
            took, gap = rounds[-1]
            print(f"    {name}, {label}, {number + 1}: {took} {gap}", flush=True)
            if took is not None and took > DELETED_WITHIN:
                raise RuntimeError(f"{label}: deleting took {took:.2f} s")
        deletions, gaps = zip(*rounds)
        row = f"| {name} | {label} | {figures(deletions)} | {figures(gaps)} |"
        with open(LOGS / "faults.md", "a", encoding="utf-8") as table:
            print(row, file=table)
        print(row, flush=True)
    lab.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--load", type=int, default=12, help="seconds of load for each fault")
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("scenarios", nargs="+", choices=SCENARIOS)
    arguments = parser.parse_args()
    for name in arguments.scenarios:
        play(name, arguments)


main()
