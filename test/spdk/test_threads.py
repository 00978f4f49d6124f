"""Light threads that SPDK moves between cores while they carry I/O."""

import unittest

from programs import (CORES, Case, native, perf_with_bdevperf, rnbd_with_spdk, spdk_tgt, two_cores,
                      wait_for)

BLOCK = 4096
BLOCKS = 8192
MOVES = 6


def places(program):
    """The core of each light thread, by its name."""
    reactors = program.call("framework_get_reactors")["reactors"]
    return {thread["name"]: reactor["lcore"]
            for reactor in reactors for thread in reactor["lw_threads"]}


def move(program, name, core):
    """Makes one light thread run on this core, and waits until it does."""
    threads = program.call("thread_get_stats")["threads"]
    number = next(thread["id"] for thread in threads if thread["name"] == name)
    program.call("thread_set_cpumask", id=number, cpumask=f"{1 << core:x}")
    wait_for(f"{name} on core {core}", lambda: places(program).get(name) == core)


def other(core):
    return CORES[1] if core == CORES[0] else CORES[0]


class Moving(Case):
    """What all cases here do."""

    def follow(self, program, progress):
        """Moves every light thread of the program to the other core, again and again; I/O has to
        go on after each move."""
        begun = sorted(places(program))
        self.assertIn("app_thread", begun)
        self.assertTrue([name for name in begun if name.startswith("rnbd_0")], begun)
        for _ in range(MOVES):
            for name, core in sorted(places(program).items()):
                move(program, name, other(core))
                before = progress()
                wait_for(f"I/O after {name} was moved", lambda: progress() > before)

    def use_scheduler(self, program):
        """SPDK's scheduler that moves idle threads to its first core and busy ones away."""
        program.call("framework_set_scheduler", name="dynamic", period=20000)


class Initiator(Moving):
    def setUp(self):
        self.server = self.start(native())
        for name in ("M", "L"):
            self.server.call("bdev_malloc_create", name=name, num_blocks=BLOCKS, block_size=BLOCK)
            self.export(self.server, name.lower(), name)
        self.port = self.listen(self.server)

    def perf(self, *options):
        """Two devices, so that there is a job on either core."""
        config = self.initiator_config(self.port, "m", "l")
        return perf_with_bdevperf(config, "-q", "16", "-o", "4096", "-w", "verify", *options,
                                  mask=two_cores())

    def written(self, program):
        controllers = program.call("bdev_rnbd_get_path_stats")["controllers"]
        return sum(path["write_count"] for one in controllers for path in one["paths"])

    def test_verified_load_goes_on_while_its_threads_are_moved(self):
        load = self.start(self.perf("-t", "3600"))
        wait_for("load", lambda: self.written(load) > 0)
        self.follow(load, lambda: self.written(load))
        self.assertEqual(load.stop(), 0, load.tail())
        self.assertNotIn("miscompare", load.tail().lower())

    def test_verified_load_goes_on_under_the_dynamic_scheduler(self):
        load = self.start(self.perf("-t", "10", "-z"))
        self.use_scheduler(load)
        wait_for("idle threads on the first core",
                 lambda: set(places(load).values()) == {CORES[0]})
        results = load.call("perform_tests")["results"]
        self.assertEqual([one["status"] for one in results], ["finished"] * 2, results)
        self.assertEqual([one["io_failed"] for one in results], [0, 0], results)
        self.assertEqual(load.stop(), 0, load.tail())

    def test_bdevs_come_and_go_while_the_threads_are_elsewhere(self):
        spdk = self.start(spdk_tgt(mask=two_cores()))
        self.attach(spdk, self.port, "m")
        for _ in range(2):
            for name, core in sorted(places(spdk).items()):
                move(spdk, name, other(core))
                spdk.call("bdev_rnbd_map_device", ctrlr_name="R", device_path="l", bdev_name="L")
                # SPDK looks into new bdevs, and uses them meanwhile.
                spdk.call("bdev_wait_for_examine")
                spdk.call("bdev_rnbd_unmap_device", name="L")
        self.assertEqual(spdk.stop(), 0, spdk.tail())


class Target(Moving):
    def daemon(self):
        return spdk_tgt(mask=two_cores())

    def setUp(self):
        self.target = self.start(self.daemon())
        self.target.call("bdev_malloc_create", name="M", num_blocks=BLOCKS, block_size=BLOCK)
        self.export(self.target, "m", "M")
        self.port = self.listen(self.target)

    def load(self):
        load = self.verify_meanwhile(self.port, "m")
        wait_for("load", lambda: self.target.writes("M") > 0)
        return load

    def assert_clean(self, load):
        self.assertIsNone(load.finish())
        self.assertEqual(self.target.stop(), 0, self.target.tail())

    def test_verified_load_goes_on_while_the_targets_threads_are_moved(self):
        load = self.load()
        self.follow(self.target, lambda: self.target.writes("M"))
        self.assert_clean(load)

    def test_verified_load_goes_on_under_the_dynamic_scheduler(self):
        self.use_scheduler(self.target)
        wait_for("idle threads on the first core",
                 lambda: set(places(self.target).values()) == {CORES[0]})
        load = self.load()
        before = self.target.writes("M")
        wait_for("more load", lambda: self.target.writes("M") > before + 5000)
        self.assert_clean(load)


class TargetInRnbdTgt(Target):
    def daemon(self):
        return rnbd_with_spdk(mask=two_cores())


if __name__ == "__main__":
    unittest.main()
