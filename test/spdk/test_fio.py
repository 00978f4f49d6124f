"""fio on RNBD devices, through SPDK's plugin."""

import os
import shutil
import subprocess
import unittest

from programs import Case, PATIENCE, SPDK, native, spdk_environment


def plugin():
    for folder in ("fio", "lib/fio"):
        path = os.path.join(SPDK, folder, "spdk_bdev")
        if os.path.exists(path):
            return path
    raise unittest.SkipTest(f"no fio plugin in {SPDK}: configure it with --with-fio=DIR")


def need_hugepages():
    """The plugin has no way to do without."""
    with open("/proc/meminfo") as info:
        free = next(line.split()[1] for line in info if line.startswith("HugePages_Free"))
    if int(free) < 256:
        raise unittest.SkipTest("needs 256 free hugepages (sysctl vm.nr_hugepages) and a mounted "
                                "hugetlbfs")


class Fio(Case):
    def test_what_fio_writes_it_reads_again(self):
        library = plugin()
        need_hugepages()
        if not shutil.which("fio"):
            raise unittest.SkipTest("fio is not installed")
        server = self.start(native())
        server.call("bdev_malloc_create", name="M", num_blocks=65536, block_size=512)
        self.export(server, "m", "M")
        config = self.initiator_config(self.listen(server), "m")
        command = ["fio", "--name=verify", "--ioengine=spdk_bdev", "--thread=1", "--direct=1",
                   "--norandommap=1", f"--spdk_json_conf={config}", "--spdk_mem=512",
                   "--filename=R_m", "--rw=randwrite", "--bs=4k", "--size=16M", "--iodepth=16",
                   "--verify=crc32c", "--do_verify=1", "--eta=never"]
        result = subprocess.run(command, env=spdk_environment(library), capture_output=True,
                                text=True, timeout=10 * PATIENCE, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("err= 0", result.stdout)


if __name__ == "__main__":
    unittest.main()
