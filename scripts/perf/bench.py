"""Side-by-side benchmark; see scripts/bench.sh. Prints Markdown."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

REPO = pathlib.Path(__file__).resolve().parents[2]
BIN = REPO / "target" / "release"
TARGET_CORE, INITIATOR_CORE = 0, 1
DEVICE_MIB = 1024
SPDK_MIB = 2048
# What all servers and an initiator take together: two programs of SPDK's, two targets of rnbd's.
HUGEPAGES_MIB = 2 * SPDK_MIB + 2 * (DEVICE_MIB + 256)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    rw: str
    block: int
    depth: int

    def __str__(self):
        return f"{self.block // 1024}K {self.rw} depth {self.depth}"


@dataclass(frozen=True)
class Result:
    """What one run gave; latencies in microseconds."""

    iops: float
    p50: float
    p99: float


CASES = [
    *(Case(rw, 4096, depth) for rw in ("randread", "randwrite") for depth in (1, 32, 128)),
    *(Case(rw, 128 * 1024, 32) for rw in ("read", "write")),
]


def pinned(core, *command):
    """The command line that runs `command` on one core."""
    return ["taskset", "-c", str(core), *map(str, command)]


def free_port():
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(ready, server, seconds=20):
    """Returns `server` when `ready()` is true; ends the program when that takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline or server.process.poll() is not None:
            with server:
                sys.exit(f"{server.command[0]} did not come up:\n{pathlib.Path(server.log.name).read_text()}")
        time.sleep(0.05)
    return server


def listens(port):
    """Whether somebody accepts connections on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A process that runs as long as the `with` block."""

    def __init__(self, command, log):
        self.command = list(map(str, command))
        self.log = open(log, "w")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)

    def __enter__(self):
        return self

    def pause(self):
        """Takes its core from it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        """Gives its core back."""
        self.process.send_signal(signal.SIGCONT)

    def __exit__(self, *_):
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def configuration(calls):
    """A configuration file's content: RPC calls by subsystem."""
    return {
        "subsystems": [
            {"subsystem": name, "config": [{"method": m, "params": p} for m, p in entries]}
            for name, entries in calls.items()
        ]
    }


class Rnbd:
    """rnbd_tgt and rnbd_perf over TCP."""

    name = "rnbd TCP"

    def __init__(self, work):
        self.work = work
        self.port = free_port()

    def serve(self):
        """The target, exporting a malloc bdev."""
        config = self.work / "target.json"
        config.write_text(json.dumps(self.config()))
        command = [BIN / "rnbd_tgt", "-m", f"[{TARGET_CORE}]", "--disable-cpumask-locks"]
        command += ["-r", self.work / "tgt.sock", "-c", config]
        return wait_for(lambda: listens(self.port), Server(command, self.work / "tgt.log"))

    def config(self):
        """The target's configuration: a list of RPC calls."""
        malloc = {"name": "Malloc0", "num_blocks": DEVICE_MIB * 2048, "block_size": 512}
        address = {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": str(self.port)}
        export = {"device_path": "disk0", "bdev_name": "Malloc0", "allow_any_host": True}
        calls = {
            "bdev": [("bdev_malloc_create", malloc)],
            "rtrs": [("rtrs_create_transport", {"trtype": "TCP"})],
            "rnbd": [
                ("rnbd_create_export", export),
                ("rtrs_add_listener", {"listen_address": address}),
            ],
        }
        return configuration(calls)

    def run(self, case, seconds):
        """One run of the load generator."""
        out = self.work / "perf.json"
        attach = f"trtype=TCP,traddr=127.0.0.1,trsvcid={self.port},device=disk0"
        command = [BIN / "rnbd_perf", "-m", f"[{INITIATOR_CORE}]", "--attach", attach]
        command += ["-q", case.depth, "-o", case.block, "-w", case.rw, "-t", seconds, "--json", out]
        check(list(map(str, command)), self.work / "perf.log")
        job = json.loads(out.read_text())["results"][0]
        percentiles = job["latency_percentiles_us"]
        return Result(job["iops"], percentiles["50"], percentiles["99"])


class RnbdFio(Rnbd):
    """rnbd_tgt over TCP, and fio with our engine."""

    name = "fio, rnbd engine"

    def run(self, case, seconds):
        """One run of fio."""
        params = {
            "name": "R", "sessname": "bench", "trtype": "TCP", "traddr": "127.0.0.1",
            "trsvcid": str(self.port), "devices": [{"device_path": "disk0", "bdev_name": "disk"}],
        }
        config = self.work / "fio.json"
        config.write_text(json.dumps(configuration({"bdev": [("bdev_rnbd_attach_controller", params)]})))
        engine = f"--ioengine=external:{BIN / 'fio-rnbd.so'}"
        return run_fio(self.work, case, seconds, engine, f"--rnbd_json_conf={config}", "--filename=disk")


class Nbd:
    """An NBD server and fio's nbd engine."""

    def __init__(self, work, unix):
        self.work = work
        self.unix = unix
        self.name = f"{self.program} " + ("Unix" if unix else "TCP")
        self.port = free_port()
        self.socket = work / f"{self.program.replace(' ', '-')}.sock"

    def serve(self):
        """The server, when it listens."""
        ready = self.socket.exists if self.unix else lambda: listens(self.port)
        return wait_for(ready, Server(self.command(), self.work / "nbd.log"))

    def run(self, case, seconds):
        """One run of fio."""
        uri = f"nbd+unix:///?socket={self.socket}" if self.unix else f"nbd://127.0.0.1:{self.port}"
        return run_fio(self.work, case, seconds, "--ioengine=nbd", f"--uri={uri}")


class Nbdkit(Nbd):
    """nbdkit's memory plugin."""

    program = "nbdkit"

    def command(self):
        """nbdkit with as much memory as the others have."""
        where = ["-U", self.socket] if self.unix else ["-i", "127.0.0.1", "-p", self.port]
        return pinned(TARGET_CORE, "nbdkit", "-f", *where, "memory", f"{DEVICE_MIB}M")


class RnbdNbd(Nbd):
    """rnbd_tgt's NBD export of a malloc bdev."""

    program = "rnbd NBD"

    def command(self):
        """The target with one export."""
        address = f"unix:{self.socket}" if self.unix else f"tcp:127.0.0.1:{self.port}"
        malloc = {"name": "Malloc0", "num_blocks": DEVICE_MIB * 2048, "block_size": 512}
        calls = {
            "bdev": [("bdev_malloc_create", malloc)],
            "nbd": [("nbd_start_export", {"bdev_name": "Malloc0", "address": address})],
        }
        config = self.work / "nbd.json"
        config.write_text(json.dumps(configuration(calls)))
        command = [BIN / "rnbd_tgt", "-m", f"[{TARGET_CORE}]", "--disable-cpumask-locks"]
        return [*command, "-r", self.work / "nbd-tgt.sock", "-c", config]


def run_fio(work, case, seconds, *engine):
    """One run of fio, on the initiators' core."""
    job = [f"--rw={case.rw}", f"--bs={case.block}", f"--iodepth={case.depth}", *engine]
    fixed = ["--name=job", "--time_based", "--output-format=json"]
    command = pinned(INITIATOR_CORE, "fio", *fixed, f"--runtime={seconds}", f"--size={DEVICE_MIB}M", *job)
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=work)
    return fio_result(json.loads(done.stdout[done.stdout.index("{"):]), case)


def fio_result(report, case):
    """The figures of fio's first job."""
    side = report["jobs"][0]["read" if "read" in case.rw else "write"]
    percentile = side["clat_ns"]["percentile"]
    return Result(side["iops"], percentile["50.000000"] / 1e3, percentile["99.000000"] / 1e3)


def spdk_memory():
    """How an SPDK program gets its memory: of hugepages where the machine has enough for all."""
    size = ["-s", str(SPDK_MIB)]
    return size if hugepages_mib() >= HUGEPAGES_MIB else ["--no-huge", *size]


def hugepages_mib():
    """MiB of hugepages that were set aside, in use or not."""
    lines = dict(line.split(":") for line in open("/proc/meminfo"))
    return int(lines["HugePages_Total"]) * int(lines["Hugepagesize"].split()[0]) // 1024


class Spdk:
    """SPDK's NVMe/TCP target and bdevperf, from a build of it."""

    name = "SPDK NVMe/TCP"

    def __init__(self, work, build):
        self.work = work
        self.build = pathlib.Path(build)
        self.port = free_port()

    def serve(self):
        """spdk_tgt or nvmf_tgt with a malloc bdev in one subsystem."""
        config = self.work / "spdk.json"
        config.write_text(json.dumps(self.config()))
        programs = [self.build / "build/bin" / name for name in ("nvmf_tgt", "spdk_tgt")]
        program = next(filter(pathlib.Path.exists, programs))
        command = [program, "-m", f"[{TARGET_CORE}]", "--disable-cpumask-locks", *spdk_memory()]
        command += ["-r", self.work / "spdk.sock", "-c", config]
        return wait_for(lambda: listens(self.port), Server(command, self.work / "spdk.log"))

    def config(self):
        """The target's configuration."""
        nqn = "nqn.2016-06.io.spdk:cnode1"
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port)}
        malloc = {"name": "Malloc0", "num_blocks": DEVICE_MIB * 2048, "block_size": 512}
        nvmf = [
            ("nvmf_create_transport", {"trtype": "TCP"}),
            ("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True, "serial_number": "0"}),
            ("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": "Malloc0"}}),
            ("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address}),
        ]
        return {
            "subsystems": [
                {"subsystem": "bdev", "config": [{"method": "bdev_malloc_create", "params": malloc}]},
                {"subsystem": "nvmf", "config": [{"method": m, "params": p} for m, p in nvmf]},
            ]
        }

    def run(self, case, seconds):
        """One run of bdevperf."""
        params = {
            "name": "Nvme0", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": str(self.port), "subnqn": "nqn.2016-06.io.spdk:cnode1",
        }
        return bdevperf(self, ("bdev_nvme_attach_controller", params), case, seconds)


class RnbdInSpdk(Rnbd):
    """rnbd_tgt over TCP, and bdevperf with rnbd's module loaded."""

    name = "rnbd TCP in SPDK"

    def __init__(self, work, build):
        super().__init__(work)
        self.build = pathlib.Path(build)

    def run(self, case, seconds):
        """One run of bdevperf."""
        params = {
            "name": "R", "sessname": "bench", "trtype": "TCP", "traddr": "127.0.0.1",
            "trsvcid": str(self.port), "devices": [{"device_path": "disk0"}],
        }
        module = {"LD_PRELOAD": str(BIN / "libspdk_rnbd.so")}
        return bdevperf(self, ("bdev_rnbd_attach_controller", params), case, seconds, module)


def bdevperf(server, attach, case, seconds, environment=None):
    """One run of bdevperf on the bdev that `attach` makes."""
    method, params = attach
    bdev = {"subsystem": "bdev", "config": [{"method": method, "params": params}]}
    config = server.work / "bdevperf.json"
    config.write_text(json.dumps({"subsystems": [bdev]}))
    command = [server.build / "build/examples/bdevperf", "-m", f"[{INITIATOR_CORE}]", *spdk_memory()]
    command += ["-r", server.work / "bdevperf.sock", "-c", config, "-q", case.depth, "-o", case.block]
    command += ["-w", case.rw, "-t", seconds, "-l"]
    log = server.work / "bdevperf.log"
    check(list(map(str, command)), log, environment)
    return bdevperf_result(log.read_text())


def bdevperf_result(text):
    """The figures of bdevperf's table and latency summary."""
    total = next(line for line in text.splitlines() if line.strip().startswith("Total"))
    iops = float(total.split(":")[1].split()[0])
    latency = {
        line.split("%")[0].strip(): float(line.split(":")[1].strip().removesuffix("us"))
        for line in text.splitlines()
        if "% :" in line and line.strip().endswith("us")
    }
    return Result(iops, latency["50.00000"], latency["99.00000"])


def check(command, log, environment=None):
    """Runs `command`; shows what it printed if it fails."""
    with open(log, "w") as out:
        env = {**os.environ, **(environment or {})}
        if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=env).returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{pathlib.Path(log).read_text()[-2000:]}")


def median(results):
    """The median of each figure."""
    return Result(*(statistics.median(getattr(r, name) for r in results) for name in FIGURES))


FIGURES = ("iops", "p50", "p99")


def core_distance():
    """Nanoseconds in which one of the two cores sees what the other stored."""
    program = BIN / "examples" / "core_distance"
    return int(subprocess.run([program, "0", "1"], capture_output=True, text=True, check=True).stdout)


class Cores:
    """How far the two cores are from each other, which on a virtual machine changes by the minute and
    with it the speed of everything."""

    # Those that share a cache are some 40 ns apart, others 100 or more.
    NEAR_NS = 80

    def __init__(self, wanted):
        if wanted not in ("any", "near", "far"):
            raise ValueError(wanted)
        self.wanted = wanted
        self.seen = []

    def run(self, server, case, seconds):
        """A result from cores that were as wanted before and after."""
        while True:
            before = self.wait()
            server.target.resume()
            result = server.run(case, seconds)
            server.target.pause()
            if self.suits(after := core_distance()):
                self.seen += [before, after]
                return result

    def wait(self):
        """Until they are as wanted; how far that is."""
        while not self.suits(distance := core_distance()):
            time.sleep(0.5)
        return distance

    def suits(self, distance):
        """Whether that is as wanted."""
        return self.wanted == "any" or (distance < self.NEAR_NS) == (self.wanted == "near")

    def __str__(self):
        return f"cores {min(self.seen)} to {max(self.seen)} ns apart"


def measure(servers, args):
    """The results of every case of every server, one a round. In each round all servers have their
    turn, as the machine's speed drifts; whose turn it is not is stopped, as it would poll."""
    results = {server: {case: [] for case in CASES} for server in servers}
    with contextlib.ExitStack() as stack:
        for server in servers:
            server.target = stack.enter_context(server.serve())
            server.target.pause()
        for case in CASES:
            for number in range(args.runs):
                # Back and forth, so that nobody is always the first.
                for server in servers[:: -1 if number % 2 else 1]:
                    results[server][case].append(args.cores.run(server, case, args.seconds))
            for server in servers:
                print(f"{server.name}: {case}: {cell(results[server][case])}", file=sys.stderr)
    return results


def cell(results):
    """One cell of the table: medians."""
    result = median(results)
    return f"{result.iops / 1e3:.1f} k, p50 {result.p50:.0f}, p99 {result.p99:.0f}"


def ratio(ours, theirs):
    """How many times as good as theirs our IOPS, p50 and p99 are: the medians of the ratios of the
    rounds, since what both ran in one round they ran at nearly the same speed of the machine."""
    def of(name):
        values = [(getattr(our, name), getattr(their, name)) for our, their in zip(ours, theirs)]
        return statistics.median(our / their if name == "iops" else their / our for our, their in values)
    iops, p50, p99 = map(of, FIGURES)
    return f"**{iops:.2f}**, p50 {p50:.2f}, p99 {p99:.2f}"


def table(servers, results):
    """The table, one row a case, with the ratios of the first server to each other one, and of what
    runs in SPDK to SPDK."""
    first, *others = servers
    pairs = [(first, other) for other in others]
    pairs += [(one, other) for one in others if isinstance(one, RnbdInSpdk)
              for other in others if isinstance(other, Spdk)]
    heads = [s.name for s in servers] + [f"{one.name} : {other.name}" for one, other in pairs]
    lines = ["| kIOPS, latency µs | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for case in CASES:
        cells = [cell(results[s][case]) for s in servers]
        cells += [ratio(results[one][case], results[other][case]) for one, other in pairs]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def instructions():
    """Instructions per I/O of target and initiator, user space only, counted by callgrind."""
    if not shutil.which("valgrind"):
        sys.exit("valgrind is needed for --instructions")
    program = BIN / "examples" / "io_count"
    lines = ["| instructions per I/O, user space | target | initiator |", "| --- | --- | --- |"]
    for op in ("read", "write"):
        cells = [count_instructions(program, op, side) for side in ("target", "initiator")]
        lines.append(f"| 4K {op} depth 32 | {cells[0]:.0f} | {cells[1]:.0f} |")
    return "\n".join(lines)


def count_instructions(program, op, side):
    """What one side executes per I/O: the difference of two runs, so that set-up does not count."""
    totals = []
    for ios in (2_000, 12_000):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        command += [f"--toggle-collect=*poll_{side}*", program, op, ios]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        collected = next(line for line in done.stderr.splitlines() if "Collected :" in line)
        totals.append(int(collected.split(":")[1]))
    return (totals[1] - totals[0]) / 10_000


def machine():
    """What it ran on."""
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    pages = f"hugepages of {hugepages_mib()} MiB" if hugepages_mib() else "no hugepages"
    return f"{os.cpu_count()} cores of {model}, Linux {os.uname().release}, {pages}"


def compare(args):
    """The table of all servers."""
    kinds = [Rnbd]
    if args.bdevperf:
        kinds += [lambda work: RnbdInSpdk(work, args.bdevperf)]
    if not args.without_nbdkit:
        kinds += [lambda work: Nbdkit(work, unix=False), lambda work: Nbdkit(work, unix=True)]
    kinds += [lambda work: Spdk(work, args.spdk)] if args.spdk else []
    return compare_kinds(kinds, args)


def compare_nbd(args):
    """A table for each kind of socket: rnbd's NBD export and nbdkit, under the same client."""
    kinds = [
        [lambda work, kind=kind, unix=unix: kind(work, unix) for kind in (RnbdNbd, Nbdkit)]
        for unix in (True, False)
    ]
    return "\n\n".join(compare_kinds(of_socket, args) for of_socket in kinds)


def compare_fio(args):
    """The same target under rnbd_perf, under fio with our engine, and under fio's nbd engine."""
    return compare_kinds([RnbdFio, Rnbd, lambda work: RnbdNbd(work, unix=False)], args)


def compare_kinds(kinds, args):
    """A table of servers, each of which has a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rnbd-bench-") as folder:
        servers = [make(pathlib.Path(tempfile.mkdtemp(dir=folder))) for make in kinds]
        return table(servers, measure(servers, args))


def main():
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds of each case; the median counts")
    parser.add_argument("--seconds", type=int, default=10, help="length of a run")
    parser.add_argument("--spdk", metavar="DIR", help="a built SPDK tree to measure too")
    parser.add_argument("--bdevperf", metavar="DIR",
                        help="measure rnbd by the bdevperf of this SPDK too, which has shared libraries")
    parser.add_argument("--without-nbdkit", action="store_true", help="leave nbdkit out")
    parser.add_argument("--instructions", action="store_true", help="count instructions per I/O instead")
    parser.add_argument("--nbd", action="store_true", help="compare the NBD export with nbdkit instead")
    parser.add_argument("--fio", action="store_true", help="compare the fio engine with other initiators instead")
    parser.add_argument("--cores", type=Cores, default="any",
                        help="near or far: count only runs in which the two cores shared a cache, or did not;"
                             " any (the default) counts all")
    parser.add_argument("--out", help="write the report to this file too")
    args = parser.parse_args()
    if os.cpu_count() < 2:
        sys.exit("two cores are needed: one for the target, one for the initiator")
    report = f"{machine()}; "
    if args.instructions:
        report += f"callgrind.\n\n{instructions()}\n"
    else:
        tables = (compare_fio if args.fio else compare_nbd if args.nbd else compare)(args)
        report += f"medians of {args.runs} rounds of {args.seconds} s each, {args.cores}; ratios are medians of"
        report += f" the rounds' own, above 1 where the first is better.\n\n{tables}\n"
    print(report)
    if args.out:
        pathlib.Path(args.out).write_text(report)


if __name__ == "__main__":
    main()
