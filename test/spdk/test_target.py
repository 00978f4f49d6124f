"""SPDK's bdevs exported to RNBD clients, by SPDK's daemon and by ours with SPDK inside."""

import os
import subprocess
import unittest

from programs import (Case, PATIENCE, RNBD, core_mask, native, rnbd_with_spdk, spdk_tgt, wait_for)

BLOCK = 4096
BLOCKS = 16384


class Targets:
    """The tests; each daemon runs all of them."""

    def daemon(self, *options):
        raise NotImplementedError

    def setUp(self):
        self.target = self.start(self.daemon())

    def malloc(self, name):
        self.target.call("bdev_malloc_create", name=name, num_blocks=BLOCKS, block_size=BLOCK)

    def verify(self, port, device):
        """rnbd_perf writes and reads the device through our native initiator."""
        config = self.initiator_config(port, device)
        command = [os.path.join(RNBD, "rnbd_perf"), "-m", core_mask(1), "--disable-cpumask-locks",
                   "-c", config, "-T", f"R_{device}", "-q", "16", "-o", "4096", "-w", "verify",
                   "-t", "2"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE,
                                check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_a_malloc_bdev_keeps_what_is_written(self):
        self.malloc("Malloc0")
        self.export(self.target, "m", "Malloc0")
        self.verify(self.listen(self.target), "m")
        self.assertEqual(self.target.stop(), 0)

    def test_a_mirror_keeps_what_is_written(self):
        self.malloc("A")
        self.malloc("B")
        self.target.call("bdev_raid_create", name="mirror", raid_level="raid1",
                         base_bdevs=["A", "B"])
        self.export(self.target, "r", "mirror")
        self.verify(self.listen(self.target), "r")

    def test_a_thin_volume_keeps_what_is_written(self):
        self.malloc("Base")
        self.target.call("bdev_lvol_create_lvstore", bdev_name="Base", lvs_name="lvs")
        self.target.call("bdev_lvol_create", lvs_name="lvs", lvol_name="v", size_in_mib=32,
                         thin_provision=True)
        self.export(self.target, "v", "lvs/v")
        self.verify(self.listen(self.target), "v")

    def test_nobody_else_writes_what_is_exported(self):
        self.malloc("Malloc0")
        self.export(self.target, "m", "Malloc0")
        self.assert_refused(-1, self.target.call, "bdev_lvol_create_lvstore", bdev_name="Malloc0",
                            lvs_name="lvs")
        self.target.call("rnbd_delete_export", device_path="m")
        wait_for("the claim's end", lambda: not self.target.bdev("Malloc0")["claimed"])
        self.target.call("bdev_lvol_create_lvstore", bdev_name="Malloc0", lvs_name="lvs")
        with self.assertRaises(Exception) as refused:
            self.export(self.target, "m", "Malloc0")
        self.assertIn("claimed", str(refused.exception))
        self.assert_refused(-19, self.target.call, "rnbd_create_export", device_path="x",
                            bdev_name="missing")

    def client(self, port, *devices):
        client = self.start(native())
        self.attach(client, port, *devices)
        return client

    def load(self, port, device):
        """Reads at random until it is ended."""
        config = self.initiator_config(port, device, sessname="load", access_mode="ro")
        command = [os.path.join(RNBD, "rnbd_perf"), "-m", core_mask(1), "--disable-cpumask-locks",
                   "-c", config, "-T", f"R_{device}", "-q", "8", "-o", "4096", "-w", "randread",
                   "-f", "-t", "60"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        wait_for("load", lambda: self.reads(device))
        return process

    def reads(self, device):
        sessions = self.target.call("rnbd_get_stats")["sessions"]
        counters = [one for session in sessions for one in session["devices"]
                    if one["device_path"] == device]
        return sum(one["reads"] for one in counters)

    def test_a_bdev_that_is_removed_under_load_goes(self):
        self.malloc("Malloc0")
        self.export(self.target, "m", "Malloc0")
        self.load(self.listen(self.target), "m")
        self.target.call("bdev_malloc_delete", name="Malloc0")
        self.assertIsNone(self.target.bdev("Malloc0"))
        self.assertEqual(self.target.stop(), 0)

    def test_a_bdev_that_grows_under_load_is_larger_for_the_client(self):
        self.target.call("bdev_null_create", name="Null0", num_blocks=BLOCKS, block_size=BLOCK)
        self.export(self.target, "n", "Null0")
        port = self.listen(self.target)
        client = self.client(port, "n")
        self.load(port, "n")
        self.target.call("bdev_null_resize", name="Null0", new_size=128)
        client.call("bdev_rnbd_rescan_device", name="R_n")
        wait_for("the new size", lambda: client.bdev("R_n")["num_blocks"] * BLOCK == 128 << 20)

    def test_a_saved_configuration_makes_the_same_again(self):
        self.malloc("Malloc0")
        self.export(self.target, "m", "Malloc0")
        port = self.listen(self.target)
        saved = self.target.save_config()
        self.assertEqual(self.target.stop(), 0)
        self.target = self.start(self.daemon("-c", self.write("saved.json", saved)))
        self.assertEqual(self.target.save_config(), saved)
        self.verify(port, "m")


class SpdkTgt(Targets, Case):
    def daemon(self, *options):
        return spdk_tgt(*options)


class RnbdTgt(Targets, Case):
    def daemon(self, *options):
        return rnbd_with_spdk(*options)


if __name__ == "__main__":
    unittest.main()
