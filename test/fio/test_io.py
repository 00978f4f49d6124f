"""fio's I/O through the engine: data, kinds of I/O, jobs, outages."""

import os
import pathlib
import time

from fio import ENGINE, MIB, FioCase
from programs import address, native, wait_for

PERF = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "perf"


class Data(FioCase):
    def test_what_is_written_in_mixed_sizes_is_read_again(self):
        config = self.config(self.ram("disk"))
        run = self.fio(config, "--name=mixed", "--filename=disk", "--rw=randrw", "--size=32M",
                       "--bssplit=512/20:4k/40:36k/20:256k/20", "--iodepth=16",
                       "--verify=crc32c", "--verify_fatal=1")
        job = run.jobs[0]
        self.assertGreater(job["read"]["total_ios"], 0)
        self.assertGreater(job["write"]["total_ios"], 0)

    def test_what_one_process_wrote_another_one_reads(self):
        config = self.config(self.ram("disk"))
        common = ["--name=v", "--filename=disk", "--bs=4k", "--size=16M", "--iodepth=32",
                  "--verify=crc32c"]
        self.fio(config, *common, "--rw=randwrite", "--do_verify=0")
        self.assertEqual(self.iostat("disk")["bytes_written"], 16 * MIB)
        run = self.fio(config, *common, "--rw=read")
        self.assertEqual(run.jobs[0]["read"]["io_bytes"], 16 * MIB)

    def test_data_that_was_changed_behind_its_back_is_noticed(self):
        """The check of the checks above."""
        config = self.config(self.ram("disk"))
        common = ["--filename=disk", "--bs=4k", "--size=1M"]
        self.fio(config, "--name=a", *common, "--rw=write", "--verify=crc32c", "--do_verify=0")
        self.fio(config, "--name=b", *common, "--rw=write", "--offset=512k", "--size=4k")
        self.refused(config, "--name=c", *common, "--rw=read", "--verify=crc32c",
                     saying="verify: bad magic header")

    def test_trimmed_blocks_read_as_zeroes(self):
        config = self.config(self.ram("disk"))
        common = ["--name=t", "--filename=disk", "--size=8M"]
        self.fio(config, *common, "--rw=write", "--bs=64k")
        run = self.fio(config, *common, "--rw=randtrim", "--bs=16k", "--iodepth=8")
        self.assertEqual(run.jobs[0]["trim"]["io_bytes"], 8 * MIB)
        self.assertEqual(self.iostat("disk")["bytes_unmapped"], 8 * MIB)
        self.fio(config, *common, "--rw=read", "--bs=64k", "--verify=pattern",
                 "--verify_pattern=0x00")

    def test_trims_between_reads_and_writes(self):
        config = self.config(self.ram("disk"))
        run = self.fio(config, "--name=tw", "--filename=disk", "--rw=trimwrite", "--bs=4k",
                       "--size=4M", "--iodepth=4")
        self.assertGreater(run.jobs[0]["write"]["total_ios"], 0)
        self.assertGreater(run.jobs[0]["trim"]["total_ios"], 0)

    def test_writes_of_zeroes_carry_no_data(self):
        config = self.config(self.ram("disk"))
        common = ["--name=z", "--filename=disk", "--size=8M", "--bs=64k"]
        self.fio(config, *common, "--rw=write")
        written = self.iostat("disk")["bytes_written"]
        self.fio(config, *common, "--rw=write", "--rnbd_write_mode=zeroes")
        self.assertEqual(self.iostat("disk")["bytes_written"], written)
        self.fio(config, *common, "--rw=read", "--verify=pattern", "--verify_pattern=0x00")

    def test_syncs_are_flushes(self):
        path = self.write("image", "")
        os.truncate(path, 64 * MIB)
        self.server.call("bdev_aio_create", name="A", filename=path, block_size=4096)
        self.export(self.server, "file", "A")
        config = self.config("file")
        run = self.fio(config, "--name=s", "--filename=file", "--rw=randwrite", "--bs=4k",
                       "--size=2M", "--iodepth=8", "--fsync=4", "--fdatasync=7", "--end_fsync=1",
                       "--verify=crc32c")
        self.assertGreaterEqual(run.jobs[0]["sync"]["total_ios"], 512 // 4)
        self.fio(config, "--name=f", "--filename=file", "--rw=write", "--bs=64k", "--size=4M",
                 "--sync=1")

    def test_several_bdevs_of_a_job_all_get_their_share(self):
        names = [self.ram(name) for name in ("one", "two", "three")]
        config = self.config(*names)
        self.fio(config, "--name=m", "--filename=one:two:three", "--rw=randrw", "--bs=4k",
                 "--size=24M", "--iodepth=32", "--verify=crc32c")
        for name in names:
            self.assertGreater(self.iostat(name)["num_write_ops"], 0, name)

    def test_bdevs_that_are_no_rnbd_devices_serve_too(self):
        create = {"method": "bdev_malloc_create",
                  "params": {"name": "local", "num_blocks": 4096, "block_size": 4096}}
        config = self.config(calls=[create])
        self.fio(config, "--name=l", "--filename=local", "--rw=randrw", "--bs=8k",
                 "--iodepth=8", "--verify=crc32c")


class Jobs(FioCase):
    def test_many_jobs_share_a_bdev(self):
        config = self.config(self.ram("disk"))
        run = self.fio(config, "--name=j", "--filename=disk", "--numjobs=4", "--size=8M",
                       "--offset_increment=8M", "--rw=randrw", "--bs=4k", "--iodepth=16",
                       "--verify=crc32c")
        self.assertEqual(len(run.jobs), 4)
        self.assertGreaterEqual(self.iostat("disk")["bytes_written"], 12 * MIB)

    def test_jobs_that_wait_for_each_other_have_the_whole_session(self):
        """A session's permits are split among the jobs that run at a time, not among all."""
        config = self.config(self.ram("disk"))
        jobs = ["--filename=disk", "--rw=randread", "--bs=4k", "--time_based", "--runtime=1"]
        for name in ("a", "b", "c"):
            jobs += [f"--name={name}", f"--ioengine=external:{ENGINE}",
                     f"--rnbd_json_conf={config}", "--stonewall", *jobs[:5]]
        run = self.begin(None, *jobs[5:], engine=False)
        self.assertEqual(wait_for("a session", self.connections), 2)
        self.assertEqual(run.wait().status, 0, run.everything())
        self.assertEqual(len(run.jobs), 3)

    def connections(self):
        sessions = self.server.call("rtrs_get_sessions")
        return sum(path["connections"] for session in sessions for path in session["paths"])

    def test_a_job_that_rests_keeps_its_session(self):
        """Heartbeats go on while fio thinks for longer than they may be missed, on both sides."""
        beat = {"peer_hb_interval_ms": 200, "peer_hb_missed_max": 3}
        call = {"method": "rtrs_set_options", "params": beat}
        strict = self.write("target.json",
                            {"subsystems": [{"subsystem": "rtrs", "config": [call]}]})
        self.server = self.start(native("-c", strict))
        self.port = self.listen(self.server)
        options = {"method": "bdev_rnbd_set_options", "params": beat}
        config = self.config(self.ram("disk"), calls=[options])
        self.fio(config, "--name=r", "--filename=disk", "--rw=randread", "--bs=4k",
                 "--number_ios=3", "--thinktime=2000000")
        accepted = self.server.call("rtrs_get_listeners")[0]["accepted"]
        self.assertEqual(accepted, 2, "a path was reconnected")

    def test_the_job_files_for_measurements_run(self):
        self.ram("disk")
        config = self.config("disk")
        for name, jobs in (("verify.fio", 1), ("latency.fio", 2), ("throughput.fio", 6)):
            folder = os.path.dirname(self.write("mark", 0))
            text = (PERF / name).read_text().replace("runtime=10", "runtime=1")
            text = text.replace("ramp_time=1\n", "")
            (pathlib.Path(folder) / name).write_text(text)
            engine = (PERF / "engine.fio").read_text()
            engine = engine.replace("../../target/release/fio-rnbd.so", ENGINE)
            engine = engine.replace("rnbd.json", config)
            (pathlib.Path(folder) / "engine.fio").write_text(engine)
            run = self.fio(None, name, folder=folder, engine=False)
            self.assertEqual(len(run.jobs), jobs, name)


class Outages(FioCase):
    def setUp(self):
        super().setUp()
        self.image = self.write("image", "")
        os.truncate(self.image, 64 * MIB)
        self.serve()

    def serve(self):
        """Everything that a target forgets when it is killed."""
        self.server.call("bdev_aio_create", name="A", filename=self.image, block_size=4096)
        self.export(self.server, "file", "A")

    def test_io_rides_through_a_restart_of_the_target(self):
        config = self.config("file")
        run = self.begin(config, "--name=o", "--filename=file", "--rw=randwrite", "--bs=4k",
                         "--size=32M", "--iodepth=16", "--rate_iops=3000", "--verify=crc32c")
        wait_for("writes", lambda: self.iostat("A")["num_write_ops"] > 500)
        self.server.kill()
        self.server.start()
        self.serve()
        self.server.call("rtrs_create_transport", trtype="TCP")
        self.server.call("rtrs_add_listener", listen_address=address(self.port))
        run.wait()
        self.assertEqual(run.status, 0, run.everything())
        self.assertEqual(run.jobs[0]["write"]["total_ios"], 32 * MIB // 4096)
        self.assertGreater(self.iostat("A")["num_write_ops"], 0, "all was written before")

    def test_control_c_ends_a_job_and_leaves_no_session(self):
        run = self.begin(self.config("file"), "--name=c", "--filename=file", "--rw=randread",
                         "--bs=4k", "--time_based", "--runtime=600")
        wait_for("reads", lambda: self.iostat("A")["num_read_ops"] > 100)
        run.interrupt()
        run.wait()
        self.assertEqual(run.jobs[0]["error"], 0, run.everything())
        self.assertEqual(self.server.call("rtrs_get_sessions"), [])

    def test_control_c_ends_a_job_whose_target_is_gone(self):
        run = self.begin(self.config("file"), "--name=g", "--filename=file", "--rw=randread",
                         "--bs=4k", "--iodepth=8", "--time_based", "--runtime=600")
        wait_for("reads", lambda: self.iostat("A")["num_read_ops"] > 100)
        self.server.kill()
        time.sleep(0.5)
        run.interrupt()
        run.wait()
        self.assertIn("have not ended within", run.everything())
        self.assertNotEqual(run.status, 0)

    def test_an_io_that_fails_has_its_errno(self):
        self.server.call("bdev_error_create", base_name="A")
        self.export(self.server, "bad", "EE_A")
        config = self.config("bad")
        self.server.call("bdev_error_inject_error", name="EE_A", io_type="write",
                         error_type="failure", num=1)
        self.refused(config, "--name=e", "--filename=bad", "--rw=write", "--bs=4k",
                     "--size=1M", saying=["io_u error on file bad", "Input/output error"])

    def test_io_fails_in_the_end_if_the_configuration_says_so(self):
        config = self.config("file", fast_io_fail_timeout_sec=1, ctrlr_loss_timeout_sec=2)
        run = self.begin(config, "--name=l", "--filename=file", "--rw=randread", "--bs=4k",
                         "--iodepth=4", "--time_based", "--runtime=600")
        wait_for("reads", lambda: self.iostat("A")["num_read_ops"] > 100)
        self.server.kill()
        run.wait()
        self.assertEqual(run.status, 1, run.everything())
        self.assertIn("io_u error on file file", run.everything())
