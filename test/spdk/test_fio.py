"""fio on RNBD devices, through SPDK's plugin."""

import os
import shutil
import subprocess
import tempfile
import unittest

from programs import Case, PATIENCE, SPDK, native, spdk_environment


PERF = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts/perf")


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
    def setUp(self):
        self.library = plugin()
        need_hugepages()
        if not shutil.which("fio"):
            raise unittest.SkipTest("fio is not installed")
        self.server = self.start(native())
        self.server.call("bdev_malloc_create", name="M", num_blocks=262144, block_size=512)

    def fio(self, *arguments, cwd=None):
        result = subprocess.run(["fio", "--eta=never", *arguments], cwd=cwd, capture_output=True,
                                env=spdk_environment(self.library), text=True,
                                timeout=10 * PATIENCE, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("err= 0", result.stdout)

    def test_what_fio_writes_it_reads_again(self):
        self.export(self.server, "m", "M")
        config = self.initiator_config(self.listen(self.server), "m")
        self.fio("--name=verify", "--ioengine=spdk_bdev", "--thread=1", "--direct=1",
                 "--norandommap=1", f"--spdk_json_conf={config}", "--spdk_mem=512",
                 "--filename=R_m", "--rw=randwrite", "--bs=4k", "--size=16M", "--iodepth=16",
                 "--verify=crc32c", "--do_verify=1", "--verify_state_save=0")

    def test_the_jobs_of_perf_labs_run(self):
        self.export(self.server, "disk", "M")
        folder, jobs = self.jobs(self.listen(self.server))
        for job in jobs:
            with self.subTest(os.path.basename(job)):
                self.fio(job, cwd=folder)

    def jobs(self, port):
        """Those of scripts/perf, shorter and for this port: where to start fio, and their paths."""
        top = os.path.join(tempfile.mkdtemp(prefix="rnbd-spdk-", dir="/tmp"), "perf")
        self.addCleanup(shutil.rmtree, os.path.dirname(top), ignore_errors=True)
        shutil.copytree(PERF, top)
        with open(os.path.join(top, "rnbd.json")) as file:
            config = file.read()
        self.assertIn('"1234"', config)
        with open(os.path.join(top, "rnbd.json"), "w") as file:
            file.write(config.replace('"1234"', f'"{port}"'))
        jobs = [os.path.join(top, name) for name in sorted(os.listdir(top))
                if name.endswith(".fio") and name != "engine.fio"]
        self.assertTrue(jobs)
        for job in jobs:
            with open(job) as file:
                text = file.read()
            with open(job, "w") as file:
                file.write(text.replace("runtime=10", "runtime=1").replace("ramp_time=1",
                                                                           "ramp_time=0"))
        own = os.path.join(top, "spdk")
        return (own if os.path.isdir(own) else top), jobs


if __name__ == "__main__":
    unittest.main()
