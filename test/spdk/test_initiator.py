"""Devices of an RNBD server as bdevs in SPDK's programs."""

import os
import subprocess
import tempfile
import unittest

from programs import (Case, PATIENCE, RpcError, SPDK, address, free_port, native, perf_with_bdevperf,
                      rnbd_perf, spdk_tgt, wait_for)

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts")
BLOCK = 512
BLOCKS = 65536


class Initiator(Case):
    def setUp(self):
        self.server = self.start(native())
        self.server.call("bdev_malloc_create", name="M", num_blocks=BLOCKS, block_size=BLOCK)
        self.server.call("bdev_null_create", name="N", num_blocks=BLOCKS, block_size=BLOCK)
        self.export(self.server, "m", "M")
        self.export(self.server, "n", "N")
        self.port = self.listen(self.server)

    def perf(self, device, *options):
        return perf_with_bdevperf(self.initiator_config(self.port, device), *options)

    def test_a_mapped_device_is_a_bdev_until_it_is_unmapped(self):
        spdk = self.start(spdk_tgt())
        self.assertEqual(self.attach(spdk, self.port, "m"), ["R_m"])
        bdev = spdk.bdev("R_m")
        self.assertEqual((bdev["block_size"], bdev["num_blocks"]), (BLOCK, BLOCKS))
        self.assertEqual(bdev["product_name"], "RNBD disk")
        self.assertEqual(bdev["driver_specific"]["rnbd"]["device_path"], "m")
        for kind in ("read", "write", "unmap", "write_zeroes", "flush", "reset", "abort"):
            self.assertTrue(bdev["supported_io_types"][kind], kind)
        # SPDK looks into new bdevs, and uses them meanwhile.
        spdk.call("bdev_wait_for_examine")
        spdk.call("bdev_rnbd_unmap_device", name="R_m")
        self.assertIsNone(spdk.bdev("R_m"))
        name = spdk.call("bdev_rnbd_map_device", ctrlr_name="R", device_path="m", bdev_name="X")
        self.assertEqual((name, spdk.bdev("X")["uuid"]), ("X", bdev["uuid"]))
        spdk.call("bdev_rnbd_detach_controller", name="R")
        self.assertEqual(spdk.call("bdev_get_bdevs"), [])
        self.assertEqual(self.server.call("rtrs_get_sessions"), [])
        self.assertEqual(spdk.stop(), 0)

    def test_errors_say_what_is_wrong_and_leave_nothing(self):
        spdk = self.start(spdk_tgt())
        call = spdk.call
        self.assert_refused(-2, self.attach, spdk, self.port, "missing")
        self.assertEqual(call("bdev_rnbd_get_controllers"), [])
        self.assert_refused(-19, call, "bdev_rnbd_unmap_device", name="none")
        self.assert_refused(-32602, call, "bdev_rnbd_map_device", nonsense=1)
        call("bdev_malloc_create", name="R_m", num_blocks=64, block_size=BLOCK)
        message = self.assert_refused(-17, self.attach, spdk, self.port, "m")
        self.assertIn("R_m", message)
        call("bdev_malloc_delete", name="R_m")
        wait_for("the refused device is closed", lambda: not self.opens("m"))

    def opens(self, device):
        return self.server.call("rnbd_get_exports", device_path=device)[0]["opens"]

    def test_a_saved_configuration_makes_the_same_again(self):
        spdk = self.start(spdk_tgt())
        spdk.call("bdev_rnbd_set_options", bdev_retry_count=7)
        self.attach(spdk, self.port, "m", "n")
        saved = spdk.save_config()
        self.assertEqual(spdk.stop(), 0)
        again = self.start(spdk_tgt("-c", self.write("saved.json", saved)))
        self.assertIsNotNone(again.bdev("R_m"))
        self.assertEqual(again.save_config(), saved)

    def test_spdks_client_attaches_saves_and_loads(self):
        spdk = self.start(spdk_tgt())
        self.rpc_py(spdk, "bdev_rnbd_attach_controller", "--name", "R", "--sessname", "spdk-test",
                    "--trtype", "TCP", "--traddr", "127.0.0.1", "--trsvcid", str(self.port))
        self.rpc_py(spdk, "bdev_rnbd_map_device", "--ctrlr-name", "R", "--device-path", "m")
        saved = self.rpc_py(spdk, "save_config")
        self.assertEqual(spdk.stop(), 0)
        again = self.start(spdk_tgt("--wait-for-rpc"))
        self.rpc_py(again, "load_config", text=saved)
        self.assertIsNotNone(again.bdev("R_m"))
        self.assertEqual(self.rpc_py(again, "save_config"), saved)

    def rpc_py(self, program, *arguments, text=None):
        """What SPDK's client prints, with our plugin."""
        client = os.path.join(SPDK, "../scripts/rpc.py")
        if not os.path.exists(client):
            self.skipTest(f"no rpc.py for {SPDK}: name a source tree with --prefix")
        environment = {**os.environ, "PYTHONPATH": SCRIPTS}
        result = subprocess.run(["python3", client, "-s", program.socket, "--plugin",
                                 "rnbd_plugin", *arguments],
                                input=text, env=environment, capture_output=True, text=True,
                                timeout=PATIENCE, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def test_what_bdevperf_writes_it_reads_again(self):
        self.run_program(self.perf("m", "-q", "32", "-o", "4096", "-w", "verify", "-t", "3"))

    def test_io_larger_than_the_servers_is_split(self):
        self.run_program(self.perf("m", "-q", "4", "-o", "1048576", "-w", "verify", "-t", "2"))

    def test_more_io_than_the_session_has_permits_waits(self):
        self.run_program(self.perf("m", "-q", "2048", "-o", "512", "-w", "randrw", "-M", "50",
                                   "-t", "2"))

    def test_every_kind_of_io_ends_well(self):
        for workload in ("unmap", "write_zeroes", "flush", "reset"):
            with self.subTest(workload):
                self.run_program(self.perf("m", "-q", "8", "-o", "4096", "-w", workload, "-t", "1"))

    def serve_file(self, server, port):
        """Exports the file again, at the same port."""
        server.call("bdev_aio_create", name="F", filename=self.path, block_size=BLOCK)
        self.export(server, "f", "F")
        server.call("rtrs_create_transport", trtype="TCP")
        server.call("rtrs_add_listener", listen_address=address(port))

    def test_verified_load_goes_on_when_the_server_comes_back(self):
        self.path, port = self.file(32), free_port()
        server = self.start(native())
        self.serve_file(server, port)
        config = self.initiator_config(port, "f")
        load = self.start(perf_with_bdevperf(config, "-q", "16", "-o", "4096", "-w", "verify",
                                             "-t", "3600"))
        for end in ("stop", "kill"):
            self.more_reads(load)
            getattr(server, end)()
            server = self.start(native())
            self.serve_file(server, port)
            self.more_reads(load)
        self.assertEqual(load.stop(), 0, load.tail())

    def test_a_server_that_removes_the_disk_ends_the_load(self):
        load = self.start(self.perf("m", "-q", "16", "-o", "4096", "-w", "randread", "-t", "3600"))
        self.more_reads(load)
        self.server.call("rnbd_delete_export", device_path="m", force=True)
        self.assertIsNotNone(load.process.wait(PATIENCE))
        self.assertGreaterEqual(load.process.returncode, 0, load.tail())

    def test_the_errno_of_the_servers_disk_reaches_spdks_users(self):
        """A server behind SPDK: what it answers its clients comes from the I/O's AIO status."""
        spdk = self.start(spdk_tgt())
        self.server.call("bdev_aio_create", name="Full", filename=self.full_disk(),
                         block_size=BLOCK)
        self.export(self.server, "full", "Full")
        self.attach(spdk, self.port, "full")
        self.export(spdk, "x", "R_full")
        config = self.initiator_config(self.listen(spdk), "x")
        load = subprocess.Popen(rnbd_perf(config, "x", "-q", "1", "-o", "4096", "-w", "write",
                                          "-f", "-t", "3600"),
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (load.kill(), load.wait()))
        wait_for("the errno", lambda: self.errors(spdk))
        self.assertEqual(list(self.errors(spdk)), ["ENOSPC"])

    def full_disk(self):
        """A file of 32 MiB where there is room for one."""
        folder = tempfile.mkdtemp(prefix="rnbd-full-", dir="/tmp")
        self.addCleanup(os.rmdir, folder)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            self.skipTest("a file system that is full needs root to be mounted")
        self.addCleanup(subprocess.run, ["umount", "-l", folder], check=True)
        path = os.path.join(folder, "disk")
        with open(path, "wb") as file:
            file.truncate(32 << 20)
        return path

    def errors(self, program):
        """What a target has answered its clients, by errno."""
        sessions = program.call("rnbd_get_stats")["sessions"]
        devices = [device for session in sessions for device in session["devices"]]
        return devices[0]["errors"] if devices else {}

    def more_reads(self, load, count=1000):
        """Waits until bdevperf has read more."""
        before = self.reads(load)
        wait_for("reads", lambda: self.reads(load) > before + count)

    def reads(self, program):
        controllers = program.call("bdev_rnbd_get_path_stats")["controllers"]
        return sum(path["read_count"] for one in controllers for path in one["paths"])

    def test_a_device_that_is_unmapped_by_force_leaves_its_user(self):
        load = self.start(self.perf("n", "-q", "16", "-o", "4096", "-w", "randread", "-t", "60"))
        wait_for("load", lambda: self.reads(load) > 0)
        self.assert_refused(-16, load.call, "bdev_rnbd_unmap_device", name="R_n", mode="normal")
        try:
            load.call("bdev_rnbd_unmap_device", name="R_n", mode="force")
        except RpcError as error:
            # bdevperf ends with its last bdev, and may do so before it has answered.
            self.assertEqual(error.code, -125)
        self.assertIsNotNone(load.process.wait(PATIENCE))
        self.assertGreaterEqual(load.process.returncode, 0, load.tail())

    def test_a_device_grows_under_load(self):
        load = self.start(self.perf("n", "-q", "16", "-o", "4096", "-w", "randread", "-t", "60"))
        wait_for("load", lambda: self.reads(load) > 0)
        self.server.call("bdev_null_resize", name="N", new_size=64)
        load.call("bdev_rnbd_rescan_device", name="R_n")
        wait_for("the new size", lambda: load.bdev("R_n")["num_blocks"] == 64 * 2048)
        before = self.reads(load)
        wait_for("more load", lambda: self.reads(load) > before)
        self.assertEqual(load.stop(), 0, load.tail())


if __name__ == "__main__":
    unittest.main()
