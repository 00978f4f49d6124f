#!/usr/bin/env python3
"""Real faults over TCP between network namespaces, while rnbd_perf checks every byte.

Prints for each fault how long no I/O ended, as the median and the worst of all rounds. Needs root.
The programs are those of --programs, by default target/release.
"""

import argparse
import pathlib
import random
import shutil
import signal
import statistics
import sys
import threading
import time

from lab import Lab, wait_until

REPO = pathlib.Path(__file__).resolve().parents[2]


class Watch:
    """Looks at the load all the time and remembers the longest time in which nothing ended."""

    def __init__(self, lab):
        self.lab = lab
        self.worst = 0.0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self):
        last, since = self.lab.done(), time.monotonic()
        while not self.is_over.wait(0.005):
            done, now = self.lab.done(), time.monotonic()
            self.worst = max(self.worst, now - since)
            if done != last:
                last, since = done, now

    def end(self):
        self.is_over.set()
        self.thread.join()
        return self.worst


def goes_on(lab):
    before = lab.done()
    wait_until("I/O goes on", lambda: lab.done() > before + 100)


def link_down(lab):
    lab.network.link(0, "down")
    time.sleep(4)
    lab.network.link(0, "up")


def all_links_down(lab):
    for path in lab.network.paths:
        lab.network.link(path, "down")
    time.sleep(3)
    for path in lab.network.paths:
        lab.network.link(path, "up")


def target_killed(lab):
    lab.target.end(signal.SIGKILL)
    lab.start_target()


def target_restarted(lab):
    lab.target.end(signal.SIGTERM)
    lab.start_target()


def target_stopped(lab):
    lab.target.send(signal.SIGSTOP)
    time.sleep(20)
    lab.target.send(signal.SIGCONT)


def packets_lost(lab):
    lab.network.lose(5)
    time.sleep(4)
    lab.network.lose(0)


def link_slow(lab):
    lab.network.throttle(0, True)
    time.sleep(4)
    lab.network.throttle(0, False)


def path_removed(lab):
    last = lab.network.paths[-1]
    paths = lab.perf.call("bdev_rnbd_get_controllers")[0]["paths"]
    wanted = f"10.99.{last}.1"
    number = next(path["path_id"] for path in paths if wanted in str(path["dst_addr"]))
    lab.perf.call("bdev_rnbd_remove_path", name="c", path_id=number)
    goes_on(lab)
    lab.perf.call("bdev_rnbd_add_path", name="c", **lab.route(last))


def target_paused(lab):
    """For less time than it takes to be given up, or a little more."""
    lab.target.send(signal.SIGSTOP)
    time.sleep(random.uniform(0.2, 3))
    lab.target.send(signal.SIGCONT)


def session_thrown_out(lab):
    lab.target.call("rtrs_disconnect_session", sessname=lab.SESSION)


def neighbour_killed(lab):
    """Another client of the same target dies in the middle of its I/O."""
    lab.neighbour_dies()


# What happens, and for how many seconds the load has to run beside it.
FAULTS = {
    "one link down 4 s": (link_down, 10),
    "all links down 3 s": (all_links_down, 12),
    "target killed": (target_killed, 10),
    "target restarted": (target_restarted, 10),
    "target stopped 20 s": (target_stopped, 32),
    "5 % of packets lost": (packets_lost, 10),
    "one link slow": (link_slow, 10),
    "path removed and added": (path_removed, 6),
}


# What the soak draws from, and how often each. A target that dies takes its leaks with it, so that
# is rare.
SOAK = {
    link_down: 4,
    all_links_down: 4,
    link_slow: 4,
    packets_lost: 4,
    path_removed: 4,
    session_thrown_out: 4,
    target_paused: 4,
    neighbour_killed: 4,
    target_killed: 1,
}

# A connection may just be gone or just be there when descriptors are counted.
SPARE_DESCRIPTORS = 2
SPARE_BYTES = 16 << 20


def is_possible(name):
    return name != "5 % of packets lost" or shutil.which("nft")


def one_round(lab, fault, seconds):
    lab.start_perf(seconds)
    watch = Watch(lab)
    try:
        fault(lab)
        goes_on(lab)
    finally:
        gap = watch.end()
    lab.report()
    return gap


def initiator_killed(lab):
    """The load dies; how long until the next one does I/O."""
    lab.start_perf(60)
    lab.perf.end(signal.SIGKILL)
    start = time.monotonic()
    lab.start_perf(3)
    gap = time.monotonic() - start
    lab.report()
    return gap


def table(programs, paths, rounds):
    lab = Lab(programs, paths)
    try:
        for name, (fault, seconds) in FAULTS.items():
            if is_possible(name):
                yield name, [one_round(lab, fault, seconds) for _ in range(rounds)]
        yield "initiator killed", [initiator_killed(lab) for _ in range(rounds)]
    finally:
        lab.close()


def show_table(arguments):
    print(f"| {'fault':<24} | paths | median s | worst s |")
    print("| --- | --- | --- | --- |")
    for paths in arguments.paths:
        for name, gaps in table(arguments.programs, paths, arguments.rounds):
            median, worst = statistics.median(gaps), max(gaps)
            print(f"| {name:<24} | {paths} | {median:.2f} | {worst:.2f} |", flush=True)


def soak(arguments):
    """Random faults every few seconds; in the end, memory and descriptors are as before."""
    lab = Lab(arguments.programs, arguments.paths[0])
    faults = [fault for fault in SOAK if fault is not packets_lost or shutil.which("nft")]
    weights = [SOAK[fault] for fault in faults]
    counts, gaps = {}, []
    try:
        lab.start_perf(5)
        lab.report()
        before = lab.target.usage()
        seconds = int(arguments.minutes * 60)
        lab.start_perf(seconds)
        own_before = lab.perf.usage()
        end = time.monotonic() + seconds - 15
        while time.monotonic() < end:
            fault = random.choices(faults, weights)[0]
            counts[fault.__name__] = counts.get(fault.__name__, 0) + 1
            watch = Watch(lab)
            try:
                fault(lab)
                goes_on(lab)
            finally:
                gaps.append(watch.end())
            time.sleep(random.uniform(1, 3))
        own_after = lab.perf.usage()
        lab.report()
        wait_until("the session is gone", lambda: not lab.target.call("rtrs_get_sessions"))
        after = lab.target.usage()
    finally:
        lab.close()
    show_soak(arguments, counts, gaps, (before, after), (own_before, own_after))


def show_soak(arguments, counts, gaps, target, initiator):
    print(f"{arguments.minutes} min, {arguments.paths[0]} paths, {sum(counts.values())} faults: "
          + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    print(f"time without service: median {statistics.median(gaps):.2f} s, worst {max(gaps):.2f} s")
    for name, ((fds, rss), (fds_after, rss_after)) in (("target", target), ("initiator", initiator)):
        print(f"{name}: descriptors {fds} -> {fds_after}, resident {rss >> 20} -> "
              f"{rss_after >> 20} MiB")
    keepers = [name for name, usage in (("target", target), ("initiator", initiator)) if keeps(*usage)]
    sys.exit(f"did not give everything back: {', '.join(keepers)}" if keepers else 0)


def keeps(before, after):
    """Whether more descriptors are open than before, or clearly more memory is in use."""
    return after[0] > before[0] + SPARE_DESCRIPTORS or after[1] > before[1] + SPARE_BYTES


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["table", "soak"], nargs="?", default="table")
    parser.add_argument("--programs", type=pathlib.Path, default=REPO / "target" / "release")
    parser.add_argument("--paths", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    {"table": show_table, "soak": soak}[arguments.what](arguments)


if __name__ == "__main__":
    main()
