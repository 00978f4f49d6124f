"""SPDK's own functional tests of a bdev, bdevio, on RNBD devices."""

import os
import unittest

from programs import (CORES, Case, Program, SPDK, SPDK_OPTIONS, native, spdk_environment)

BLOCKS = 65536


def bdevio():
    for path in ("bin/bdevio", "../test/bdev/bdevio/bdevio"):
        path = os.path.join(SPDK, path)
        if os.path.exists(path):
            return path
    raise unittest.SkipTest(f"no bdevio in {SPDK}: name a source tree with --prefix in which "
                            "test/bdev/bdevio was built, too (needs CUnit)")


def bdevio_on(config):
    """It wants three reactors, and gets them on however few cores: such a mask goes to DPDK."""
    cores = ",".join(map(str, CORES))
    command = [bdevio(), "-m", f"--lcores=(0-2)@({cores})", *SPDK_OPTIONS, "-c", config]
    return Program("bdevio", command, spdk_environment())


class Bdevio(Case):
    def setUp(self):
        bdevio()
        self.server = self.start(native())

    def check(self, block_size):
        self.server.call("bdev_malloc_create", name="M", num_blocks=BLOCKS, block_size=block_size)
        self.export(self.server, "m", "M")
        output = self.run_program(bdevio_on(self.initiator_config(self.listen(self.server), "m")))
        self.assertIn("R_m", output)
        self.assertRegex(output, r"asserts +\d+ +\d+ +\d+ +0 ")

    def test_a_device_of_small_blocks_behaves(self):
        self.check(512)

    def test_a_device_of_pages_behaves(self):
        self.check(4096)


if __name__ == "__main__":
    unittest.main()
