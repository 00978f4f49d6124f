#!/usr/bin/env python3
"""Writes stamped blocks to a device until SIGTERM, and then checks that none was lost.

    stamps.py DEVICE BLOCKS REPORT

Writes that fail are counted, not fatal: after one, its block may hold what was there before or what
the write brought. After SIGTERM every block is read; one with anything else is the end of it.
REPORT gets a line for each change: "failing" at the first error, "writing" at the first success
after that. Prints "N written, N failed".
"""

import mmap
import os
import signal
import sys
import time

BLOCK = 4096


class Stamper:
    def __init__(self, device, blocks, report):
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, BLOCK)
        self.may_hold = {block: {bytes(BLOCK)} for block in range(blocks)}
        self.report = report
        self.failing = False
        self.written = self.failed = 0
        self.stopped = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        self.stopped = True

    def clear(self):
        for block in self.may_hold:
            self.write(block, bytes(BLOCK))

    def write(self, block, content):
        self.buffer[:] = content
        return os.pwritev(self.fd, [self.buffer], block * BLOCK)

    def read(self, block):
        os.preadv(self.fd, [self.buffer], block * BLOCK)
        return bytes(self.buffer)

    def stamp(self, number):
        block = number % len(self.may_hold)
        content = f"{block} {number} ".encode().ljust(BLOCK, b"*")
        try:
            self.write(block, content)
        except OSError:
            self.may_hold[block].add(content)
            self.count_failed()
        else:
            self.may_hold[block] = {content}
            self.count_written()

    def count_failed(self):
        self.failed += 1
        self.tell(failing=True)
        # What fails at once would otherwise fail thousands of times.
        time.sleep(0.05)

    def count_written(self):
        self.written += 1
        self.tell(failing=False)

    def tell(self, failing):
        if failing != self.failing:
            self.failing = failing
            print("failing" if failing else "writing", file=self.report, flush=True)

    def check(self):
        for block, contents in self.may_hold.items():
            found = self.read(block)
            if found not in contents:
                sys.exit(f"block {block} has {found[:30]}, not {[c[:30] for c in contents]}")


def main():
    device, blocks, report = sys.argv[1:]
    with open(report, "w", encoding="utf-8") as report:
        stamper = Stamper(device, int(blocks), report)
        stamper.clear()
        print("writing", file=report, flush=True)
        number = 0
        while not stamper.stopped:
            stamper.stamp(number)
            number += 1
    stamper.check()
    print(f"{stamper.written} written, {stamper.failed} failed")


main()
