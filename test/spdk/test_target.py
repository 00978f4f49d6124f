"""SPDK's bdevs exported to RNBD clients, by SPDK's daemon and by ours with SPDK inside."""

import json
import os
import subprocess
import unittest

from programs import (Case, PATIENCE, RNBD, native, rnbd_perf, rnbd_with_spdk, spdk_tgt,
                      wait_for)

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

    def verify(self, port, device, *options):
        """rnbd_perf writes and reads the device through our native initiator."""
        config = self.initiator_config(port, device)
        command = rnbd_perf(config, device, *(options or ("-q", "16")), "-o", "4096",
                            "-w", "verify", "-t", "2")
        result = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE,
                                check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def more_writes(self, bdev, count=100):
        """Waits until the bdev has written more."""
        before = self.target.writes(bdev)
        wait_for(f"writes on {bdev}", lambda: self.target.writes(bdev) > before + count)

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
        command = rnbd_perf(config, device, "-q", "8", "-o", "4096", "-w", "randread", "-f",
                            "-t", "3600")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        wait_for("load", lambda: self.reads(device))
        return process

    def reads(self, device):
        sessions = self.target.call("rnbd_get_stats")["sessions"]
        counters = [one for session in sessions for one in session["devices"]
                    if one["device_path"] == device]
        return sum(one["reads"] for one in counters)

    def opens(self, device):
        return self.target.call("rnbd_get_exports", device_path=device)[0]["opens"]

    def test_a_bdev_that_is_removed_under_load_goes_and_can_be_exported_again(self):
        self.malloc("Malloc0")
        self.export(self.target, "m", "Malloc0")
        port = self.listen(self.target)
        load = self.load(port, "m")
        self.target.call("bdev_malloc_delete", name="Malloc0")
        self.assertIsNone(self.target.bdev("Malloc0"))
        wait_for("the devices' end", lambda: not self.opens("m"))
        load.kill()
        self.malloc("Malloc0")
        self.target.call("rnbd_delete_export", device_path="m")
        self.export(self.target, "m", "Malloc0")
        self.verify(port, "m")
        self.assertEqual(self.target.stop(), 0, self.target.tail())

    def test_a_mirror_loses_one_half_under_verified_load(self):
        self.malloc("A")
        self.malloc("B")
        self.target.call("bdev_raid_create", name="mirror", raid_level="raid1",
                         base_bdevs=["A", "B"])
        self.export(self.target, "r", "mirror")
        load = self.verify_meanwhile(self.listen(self.target), "r")
        self.more_writes("mirror")
        self.target.call("bdev_malloc_delete", name="A")
        self.more_writes("mirror")
        self.assertIsNone(load.finish())

    def test_a_volume_grows_under_verified_load(self):
        self.malloc("Base")
        self.target.call("bdev_lvol_create_lvstore", bdev_name="Base", lvs_name="lvs")
        self.target.call("bdev_lvol_create", lvs_name="lvs", lvol_name="v", size_in_mib=16,
                         thin_provision=True)
        self.export(self.target, "v", "lvs/v")
        port = self.listen(self.target)
        load = self.verify_meanwhile(port, "v")
        self.more_writes("lvs/v")
        self.target.call("bdev_lvol_resize", name="lvs/v", size_in_mib=32)
        self.more_writes("lvs/v")
        self.assertIsNone(load.finish())
        client = self.client(port, "v")
        self.assertEqual(client.bdev("R_v")["num_blocks"] * BLOCK, 32 << 20)

    def restart(self, saved, end):
        """Ends the daemon this way, and starts it with what was saved of it."""
        end()
        self.target = self.start(self.daemon("-c", self.write("saved.json", saved)))

    def test_verified_load_goes_on_when_the_daemon_comes_back(self):
        self.target.call("bdev_aio_create", name="File", filename=self.file(32), block_size=BLOCK)
        self.export(self.target, "f", "File")
        port = self.listen(self.target)
        load = self.verify_meanwhile(port, "f")
        saved = self.target.save_config()
        for end in ("stop", "kill"):
            self.more_writes("File")
            self.restart(saved, getattr(self.target, end))
            self.more_writes("File")
        self.assertIsNone(load.finish())

    def test_more_io_than_spdk_has_structures_for_waits(self):
        self.target.stop()
        options = {"method": "bdev_set_options",
                   "params": {"bdev_io_pool_size": 64, "bdev_io_cache_size": 4}}
        config = {"subsystems": [{"subsystem": "bdev", "config": [options]}]}
        self.target = self.start(self.daemon("-c", self.write("few.json", config)))
        self.malloc("Malloc0")
        # I/O over the limit waits in its structure.
        self.target.call("bdev_set_qos_limit", name="Malloc0", rw_ios_per_sec=10000)
        self.export(self.target, "s", "Malloc0")
        self.verify(self.listen(self.target), "s", "-q", "256")
        self.assertEqual(self.target.stop(), 0, self.target.tail())

    def test_a_bdev_that_grows_under_load_is_larger_for_the_client(self):
        self.target.call("bdev_null_create", name="Null0", num_blocks=BLOCKS, block_size=BLOCK)
        self.export(self.target, "n", "Null0")
        port = self.listen(self.target)
        client = self.client(port, "n")
        self.load(port, "n")
        self.target.call("bdev_null_resize", name="Null0", new_size=128)
        client.call("bdev_rnbd_rescan_device", name="R_n")
        wait_for("the new size", lambda: client.bdev("R_n")["num_blocks"] * BLOCK == 128 << 20)

    def test_rnbd_rpc_saves_and_loads_the_configuration(self):
        self.malloc("Malloc0")
        self.export(self.target, "m", "Malloc0")
        port = self.listen(self.target)
        saved = self.rnbd_rpc("save_config")
        self.assertEqual(self.target.stop(), 0)
        self.target = self.start(self.daemon("--wait-for-rpc"))
        self.rnbd_rpc("load_config", text=saved)
        self.assertEqual(json.loads(self.rnbd_rpc("save_config")), json.loads(saved))
        self.verify(port, "m")

    def rnbd_rpc(self, command, text=None):
        """What our client prints."""
        result = subprocess.run([os.path.join(RNBD, "rnbd_rpc"), "-s", self.target.socket, command],
                                input=text, capture_output=True, text=True, timeout=PATIENCE,
                                check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

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
