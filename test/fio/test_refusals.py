"""What cannot work is refused, with a reason, and fio fails."""

import glob
import os
import shutil
import stat
import subprocess

from fio import ENGINE, FioCase
from programs import free_port

JOB = ["--name=job", "--rw=randread", "--bs=4k", "--size=1M"]


class Configuration(FioCase):
    def test_the_bdevs_that_are_there_are_named(self):
        config = self.config(self.ram("disk"))
        self.refused(config, *JOB, "--filename=dis",
                     saying="there is no bdev dis; there are: disk")
        self.refused(config, *JOB, "--filename=disk:other", saying="there is no bdev other")

    def test_a_configuration_is_needed(self):
        self.refused(None, *JOB, "--filename=disk", saying="rnbd_json_conf is missing")
        self.refused("/nowhere/rnbd.json", *JOB, "--filename=disk",
                     saying=["cannot read configuration /nowhere/rnbd.json", "No such file"])

    def test_a_configuration_is_json_that_we_know(self):
        path = self.write("broken.json", 0)
        with open(path, "w") as file:
            file.write('{ "subsystems": [ { "subsystem": "bdev" ')
        self.refused(path, *JOB, "--filename=disk", saying=[path, "is not valid", "line 1"])
        config = self.config(calls=[{"method": "bdev_malloc_make"}])
        self.refused(config, *JOB, "--filename=disk",
                     saying="bdev_malloc_make is not a method of this program")

    def test_a_failed_attach_says_why(self):
        config = self.config("nothing")
        self.refused(config, *JOB, "--filename=nothing",
                     saying=["bdev_rnbd_attach_controller failed", "nothing"])
        self.port = free_port()
        self.refused(self.config("disk"), *JOB, "--filename=disk",
                     saying=["bdev_rnbd_attach_controller failed", "refused"])

    def test_all_jobs_have_one_configuration(self):
        self.ram("disk")
        configs = [self.config("disk"), self.config("disk")]
        options = []
        for name, config in zip("ab", configs):
            options += [f"--name={name}", f"--ioengine=external:{ENGINE}",
                        f"--rnbd_json_conf={config}", "--filename=disk", "--size=1M"]
        self.refused(None, *options, engine=False,
                     saying="all jobs of a process have one rnbd_json_conf")

    def test_sizes_that_are_no_whole_blocks_are_refused(self):
        config = self.config(self.ram("disk", block_size=4096))
        job = ["--name=job", "--rw=randread", "--size=1M", "--filename=disk"]
        self.refused(config, *job, "--bs=512",
                     saying="bdev disk has blocks of 4096 bytes: bs=512 does not fit")
        self.refused(config, *job, "--bs=4k", "--blockalign=1k",
                     saying="bdev disk has blocks of 4096 bytes: blockalign=1024 does not fit")
        self.refused(config, *job, "--bs=4k", "--offset=512",
                     saying=["4096 bytes at", "are no whole blocks", "Invalid argument"])

    def test_a_device_without_write_access_is_not_written(self):
        self.server.call("bdev_malloc_create", name="M", num_blocks=8192, block_size=512)
        self.export(self.server, "ro", "M", read_only=True)
        config = self.write("ro.json", {"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_rnbd_attach_controller", "params": {
                "name": "R", "sessname": "s", "trtype": "TCP", "traddr": "127.0.0.1",
                "trsvcid": str(self.port),
                "devices": [{"device_path": "ro", "access_mode": "ro", "bdev_name": "ro"}]}}]}]})
        self.fio(config, *JOB, "--filename=ro")
        self.refused(config, *JOB, "--rw=write", "--filename=ro", saying="bdev ro is read-only")

    def test_memory_of_another_kind_is_refused(self):
        config = self.config(self.ram("disk"))
        self.refused(config, *JOB, "--filename=disk", "--mem=malloc", saying="conflicts")


class Versions(FioCase):
    def other_fio(self):
        """The fio that is installed, under another version."""
        installed = shutil.which("fio")
        with open(installed, "rb") as file:
            program = file.read()
        version = subprocess.run([installed, "--version"], capture_output=True, text=True,
                                 check=True).stdout.strip()
        other = version[:-1] + ("1" if version[-1] != "1" else "2")
        self.assertIn(version.encode() + b"\0", program)
        folder = os.path.dirname(self.write("mark", 0))
        path = os.path.join(folder, "fio")
        with open(path, "wb") as file:
            file.write(program.replace(version.encode() + b"\0", other.encode() + b"\0"))
        os.chmod(path, stat.S_IRWXU)
        return path, version, other

    def test_another_fio_is_refused_when_it_loads_the_engine(self):
        program, built, other = self.other_fio()
        config = self.config(self.ram("disk"))
        self.refused(config, *JOB, "--filename=disk", program=program,
                     saying=[f"was built for {built}, but this is {other}", "not loadable"])

    def test_another_fio_is_refused_when_the_engine_is_built(self):
        program, built, other = self.other_fio()
        pattern = os.path.join(os.path.dirname(ENGINE), "build", "fio_rnbd-*", "build-script-build")
        script = max(glob.glob(pattern), key=os.path.getmtime)
        sources = os.path.join(os.path.dirname(__file__), "..", "..", "app", "fio_rnbd")
        result = subprocess.run([script], env={**os.environ, "FIO": program}, cwd=sources,
                                capture_output=True, text=True, check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"is of {built}, but the program {program} is {other}", result.stderr)

    def test_help_for_the_options_is_there(self):
        result = subprocess.run(["fio", f"--enghelp=external:{ENGINE}"], capture_output=True,
                                text=True, check=False)
        result_by_path = subprocess.run(["fio", f"--enghelp={ENGINE}"], capture_output=True,
                                        text=True, check=False)
        self.assertIn("rnbd_json_conf", result.stdout + result_by_path.stdout)
        self.assertIn("rnbd_write_mode", result.stdout + result_by_path.stdout)
