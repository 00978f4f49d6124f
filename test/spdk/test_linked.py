"""The static module in a program of one's own."""

import os
import shutil
import subprocess
import tempfile
import unittest

from programs import (Case, MODULE, Program, RNBD, SPDK, SPDK_OPTIONS, core_mask, library_path,
                      native)

ARCHIVE = os.path.join(RNBD, "libspdk_rnbd.a")
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "linked.c")

# What a program is linked with that has SPDK's framework and all its bdevs.
PACKAGES = ["spdk_event", "spdk_event_bdev", "spdk_event_accel", "spdk_event_sock",
            "spdk_event_keyring", "spdk_env_dpdk", "spdk_bdev_modules", "spdk_keyring_modules"]
# What the module needs that is no part of SPDK.
SYSTEM = ["-lpthread", "-ldl", "-lrt", "-lm", "-lgcc_s"]


def pkg_config(*arguments):
    paths = [os.path.join(SPDK, "lib", "pkgconfig"), os.environ.get("PKG_CONFIG_PATH", "")]
    environment = {**os.environ, "PKG_CONFIG_PATH": ":".join(filter(None, paths))}
    result = subprocess.run(["pkg-config", *arguments], env=environment, capture_output=True,
                            text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(result.stderr)
    return result.stdout.split()


def spdk_libraries():
    """SPDK's and DPDK's, all of which are taken, because they register themselves."""
    return ["-Wl,--no-as-needed", *dict.fromkeys(pkg_config("--libs", *PACKAGES))]


def with_paths(words):
    """The same, and the program finds at run time what the linker finds."""
    folders = dict.fromkeys(word[2:] for word in words if word.startswith("-L"))
    return [*words, *(f"-Wl,-rpath,{folder}" for folder in folders)]


class Linked(Case):
    def build(self, spdk):
        """The program, linked with our archive as a whole and with these arguments for SPDK."""
        folder = tempfile.mkdtemp(prefix="rnbd-linked-", dir="/tmp")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        program = os.path.join(folder, "linked")
        command = ["cc", "-Wall", "-Werror", SOURCE, "-o", program,
                   *pkg_config("--cflags", *PACKAGES),
                   "-Wl,--whole-archive", ARCHIVE, "-Wl,--no-whole-archive",
                   *with_paths([*spdk, *pkg_config("--libs", "--static", "spdk_syslibs")]),
                   *self.rdma(), *SYSTEM]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, " ".join(command) + "\n" + result.stderr[-4000:])
        return program

    def rdma(self):
        """Of the module, if it was built with transport RDMA."""
        needed = subprocess.run(["ldd", MODULE], capture_output=True, text=True, check=True).stdout
        return [f"-l{name}" for name in ("rdmacm", "ibverbs") if f"lib{name}." in needed]

    def check(self, program):
        """It writes and reads a device of a server."""
        server = self.start(native())
        server.call("bdev_malloc_create", name="M", num_blocks=8192, block_size=4096)
        self.export(server, "m", "M")
        config = self.initiator_config(self.listen(server), "m")
        command = [program, "-m", core_mask(0), *SPDK_OPTIONS, "-c", config]
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path()}
        output = self.run_program(Program("linked", command, environment))
        self.assertIn("what was written was read again", output)

    def test_in_a_program_with_spdks_archives(self):
        if not os.path.exists(os.path.join(SPDK, "lib", "libspdk_bdev.a")):
            raise unittest.SkipTest(f"no static libraries of SPDK in {SPDK}/lib")
        archives = [f"-l:lib{word[2:]}.a" if word.startswith("-lspdk_") else word
                    for word in spdk_libraries()]
        self.check(self.build(["-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive"]))

    def test_in_a_program_with_spdks_shared_libraries(self):
        self.check(self.build(["-Wl,--allow-shlib-undefined", *spdk_libraries()]))


if __name__ == "__main__":
    unittest.main()
