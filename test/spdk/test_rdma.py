"""Transport RDMA inside SPDK, as far as it goes on a machine that may have no RDMA device."""

import glob
import unittest

from programs import Case, address, native, rnbd_with_spdk, spdk_tgt, wait_for


def has_device():
    return bool(glob.glob("/sys/class/infiniband/*"))


class Rdma:
    """The tests; each daemon runs all of them."""

    def daemon(self, *options):
        raise NotImplementedError

    def setUp(self):
        self.target = self.start(self.daemon())

    def test_devices_are_listed(self):
        names = [device["name"] for device in self.target.call("rdma_get_devices")]
        self.assertEqual(bool(names), has_device(), names)

    def test_options_are_saved_below_those_of_bdevs(self):
        self.target.call("rdma_set_options", cq_entries=512)
        order = [one["subsystem"] for one in self.target.call("framework_get_subsystems")]
        self.assertLess(order.index("rdma"), order.index("bdev"))
        saved = self.target.save_config()
        self.assertEqual(self.target.stop(), 0)
        self.target = self.start(self.daemon("-c", self.write("saved.json", saved)))
        self.assertEqual(self.target.save_config(), saved)
        config = self.target.call("framework_get_config", name="rdma")
        self.assertEqual(config[0]["params"]["cq_entries"], 512)

    def test_a_device_that_is_not_there_is_named(self):
        message = self.assert_refused(-19, self.target.call, "rdma_reset_device", name="none0")
        self.assertIn("none0", message)

    def test_a_listener_without_a_device_says_so_and_tcp_goes_on(self):
        if has_device():
            self.skipTest("there is an RDMA device; test/vm has the case with one")
        with self.assertRaises(Exception) as refused:
            self.target.call("rtrs_create_transport", trtype="RDMA")
            self.target.call("rtrs_add_listener",
                             listen_address={**address(1234), "trtype": "RDMA"})
        self.assertRegex(str(refused.exception), "(?i)rdma|device")
        self.target.call("bdev_malloc_create", name="M", num_blocks=8192, block_size=4096)
        self.export(self.target, "m", "M")
        port = self.listen(self.target)
        client = self.start(native())
        self.attach(client, port, "m")
        self.assertIsNotNone(client.bdev("R_m"))

    def test_a_controller_without_a_device_says_so_and_leaves_nothing(self):
        if has_device():
            self.skipTest("there is an RDMA device; test/vm has the case with one")
        with self.assertRaises(Exception) as refused:
            self.target.call("bdev_rnbd_attach_controller", name="X", sessname="x",
                             trtype="RDMA", traddr="127.0.0.1", trsvcid="1234")
        self.assertRegex(str(refused.exception), "(?i)rdma|device")
        wait_for("the controller's end",
                 lambda: self.target.call("bdev_rnbd_get_controllers") == [])
        self.assertEqual(self.target.stop(), 0, self.target.tail())


class SpdkTgt(Rdma, Case):
    def daemon(self, *options):
        return spdk_tgt(*options)


class RnbdTgt(Rdma, Case):
    def daemon(self, *options):
        return rnbd_with_spdk(*options)


if __name__ == "__main__":
    unittest.main()
