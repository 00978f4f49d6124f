"""fio with the engine under test, and a target for it."""

import json
import os
import signal
import subprocess

from programs import PATIENCE, RNBD, Case, attach_params, native

ENGINE = os.path.join(RNBD, "fio-rnbd.so")
MIB = 1024 * 1024


class Run:
    """A fio that is at work, or was."""

    def __init__(self, process):
        self.process = process
        self.output = self.errors = ""

    def wait(self):
        try:
            self.output, self.errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.output, self.errors = self.process.communicate()
            raise AssertionError(f"fio does not end:\n{self.everything()}") from None
        return self

    def interrupt(self):
        """As control-C does."""
        self.process.send_signal(signal.SIGINT)

    @property
    def status(self):
        return self.process.returncode

    def everything(self):
        return f"status {self.status}\n{self.output}\n{self.errors}"

    @property
    def jobs(self):
        """What fio tells of its jobs. Lines for people may stand before it."""
        return json.loads(self.output[self.output.index("\n{") if self.output[0] != "{" else 0:])[
            "jobs"]


class FioCase(Case):
    """A test with a target that is there from the start."""

    def setUp(self):
        self.server = self.start(native())
        self.port = self.listen(self.server)

    def ram(self, name, mib=64, block_size=512):
        """Exports a RAM disk; what comes back is its name on both sides."""
        self.server.call("bdev_malloc_create", name=name, block_size=block_size,
                         num_blocks=mib * MIB // block_size)
        self.export(self.server, name, name)
        return name

    def config(self, *devices, calls=(), **more):
        """A configuration that attaches these devices under their own names."""
        params = attach_params(self.port, **more)
        params["devices"] = [{"device_path": device, "bdev_name": device} for device in devices]
        attach = {"method": "bdev_rnbd_attach_controller", "params": params}
        subsystem = {"subsystem": "bdev", "config": [*calls, attach]}
        return self.write("rnbd.json", {"subsystems": [subsystem]})

    def begin(self, config, *options, program="fio", folder=None, engine=True):
        command = [program]
        if engine:
            command += [f"--ioengine=external:{ENGINE}"]
        if config:
            command += [f"--rnbd_json_conf={config}"]
        command += ["--output-format=json", "--verify_state_save=0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   stdin=subprocess.DEVNULL, text=True, cwd=folder)
        self.addCleanup(process.kill)
        return Run(process)

    def fio(self, config, *options, **more):
        """Runs fio, which has to succeed."""
        run = self.begin(config, *options, **more).wait()
        self.assertEqual(run.status, 0, run.everything())
        for job in run.jobs:
            self.assertEqual(job["error"], 0, run.everything())
        return run

    def refused(self, config, *options, saying, **more):
        """Runs fio, which has to fail and to say this."""
        run = self.begin(config, *options, **more).wait()
        self.assertNotEqual(run.status, 0, run.everything())
        self.assertGreater(run.status, 0, f"a signal: {run.everything()}")
        for text in [saying] if isinstance(saying, str) else saying:
            self.assertIn(text, run.output + run.errors)
        return run

    def iostat(self, bdev):
        return self.server.call("bdev_get_iostat", names=[bdev])["bdevs"][0]
