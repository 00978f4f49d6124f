"""The programs under test, started and asked by RPC."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

SPDK = os.environ.get("SPDK_BUILT", "")
RNBD = os.environ.get("RNBD_BUILT", "")
WITH_SPDK = os.environ.get("RNBD_WITH_SPDK", "")
MODULE = os.path.join(RNBD, "libspdk_rnbd.so")

# SPDK wants hugepages unless it is told otherwise.
SPDK_OPTIONS = ["--no-huge", "-s", "1024", "--disable-cpumask-locks"]

# Seconds until something that must happen has happened, also on a machine that is busy.
PATIENCE = 60

CORES = sorted(os.sched_getaffinity(0))


def core_mask(index):
    """The mask of one of the cores; the last one if there are fewer."""
    return f"[{CORES[min(index, len(CORES) - 1)]}]"


def two_cores():
    """The mask of the first two cores."""
    if len(CORES) < 2:
        raise unittest.SkipTest("needs two cores")
    return f"[{CORES[0]},{CORES[1]}]"


def library_path():
    known = os.environ.get("LD_LIBRARY_PATH", "")
    return ":".join(filter(None, [os.path.join(SPDK, "lib"), os.path.join(SPDK, "lib64"), known]))


def spdk_environment(*preload):
    """For a program of SPDK's that gets these libraries, and ours behind them."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": library_path(),
        "LD_PRELOAD": ":".join([*preload, MODULE]),
    }


def bdevperf():
    for folder in ("bin", "examples"):
        path = os.path.join(SPDK, folder, "bdevperf")
        if os.path.exists(path):
            return path
    raise unittest.SkipTest(f"no bdevperf in {SPDK}: name a built source tree with --prefix")


def wait_for(what, condition, patience=PATIENCE):
    """What `condition` returns, as soon as that is something."""
    end = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {patience} s")
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RpcError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['message']} ({error['code']})")
        self.code = error["code"]
        self.message = error["message"]


class Program:
    """A program with an RPC server, in a folder of its own for its socket and its log."""

    def __init__(self, name, command, environment=None):
        self.name = name
        self.folder = tempfile.mkdtemp(prefix=f"rnbd-{name}-", dir="/tmp")
        self.socket = os.path.join(self.folder, "rpc.sock")
        self.log = os.path.join(self.folder, "log")
        self.command = [*command, "-r", self.socket]
        self.environment = environment
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=self.environment)
        answers = self.lists_methods if "--wait-for-rpc" in self.command else self.is_up
        wait_for(f"{self.name} answers", lambda: self.has_answered(answers))
        return self

    def lists_methods(self):
        return self.call("rpc_get_methods")

    def is_up(self):
        return self.call("framework_wait_init")

    def has_answered(self, call):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended:\n{self.tail()}")
        try:
            return call()
        except (OSError, json.JSONDecodeError):
            return False

    def tail(self):
        with open(self.log, errors="replace") as log:
            return "".join(log.readlines()[-40:])

    def call(self, method, **params):
        request = {"jsonrpc": "2.0", "id": 1, "method": method}
        if params:
            request["params"] = params
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(self.socket)
            connection.sendall(json.dumps(request).encode())
            text = b""
            while True:
                part = connection.recv(65536)
                text += part
                try:
                    answer = json.loads(text)
                    break
                except json.JSONDecodeError:
                    if not part:
                        raise
        if "error" in answer:
            raise RpcError(answer["error"])
        return answer["result"]

    def writes(self, bdev):
        """Writes that the bdev has done."""
        return self.call("bdev_get_iostat", names=[bdev])["bdevs"][0]["num_write_ops"]

    def bdev(self, name):
        """The bdev, or nothing."""
        return next((bdev for bdev in self.call("bdev_get_bdevs") if bdev["name"] == name), None)

    def save_config(self):
        subsystems = self.call("framework_get_subsystems")
        return {"subsystems": [
            {"subsystem": one["subsystem"],
             "config": self.call("framework_get_config", name=one["subsystem"])}
            for one in subsystems]}

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Asks it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end:\n{self.tail()}") from None

    def remove(self):
        if self.process and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def rnbd_perf(config, device, *options):
    """The command of our load generator on one device of a configuration."""
    return [os.path.join(RNBD, "rnbd_perf"), "-m", core_mask(1), "--disable-cpumask-locks",
            "-c", config, "-T", f"R_{device}", *options]


def native(*options):
    """rnbd_tgt without SPDK."""
    command = [os.path.join(RNBD, "rnbd_tgt"), "-m", core_mask(1), "--disable-cpumask-locks",
               "--reactor-mode", "adaptive", *options]
    return Program("native", command)


def spdk_tgt(*options, mask=None):
    """SPDK's own daemon with our module loaded."""
    command = [os.path.join(SPDK, "bin", "spdk_tgt"), "-m", mask or core_mask(0), *SPDK_OPTIONS,
               *options]
    return Program("spdk_tgt", command, spdk_environment())


def rnbd_with_spdk(*options, mask=None):
    """rnbd_tgt with SPDK inside."""
    command = [os.path.join(WITH_SPDK, "rnbd_tgt"), "-m", mask or core_mask(0), *SPDK_OPTIONS,
               *options]
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path()}
    return Program("rnbd_with_spdk", command, environment)


def perf_with_bdevperf(config, *options, mask=None):
    """bdevperf on the bdevs of a configuration: a program that ends by itself."""
    command = [bdevperf(), "-m", mask or core_mask(0), *SPDK_OPTIONS, "-c", config, *options]
    return Program("bdevperf", command, spdk_environment())


class Repeated:
    """A command that is run again as soon as it has ended, until somebody says that it is enough."""

    def __init__(self, command):
        self.command = command
        self.enough = threading.Event()
        self.process = None
        self.failure = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while self.failure is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            output, _ = self.process.communicate()
            if self.process.returncode != 0:
                self.failure = f"{' '.join(self.command)}: {self.process.returncode}\n{output}"
            if self.enough.is_set():
                return

    def finish(self):
        """Lets the present run end; what went wrong in any, or nothing."""
        self.enough.set()
        self.thread.join()
        return self.failure

    def cancel(self):
        self.enough.set()
        if self.process and self.process.poll() is None:
            self.process.kill()
        self.thread.join()


class Case(unittest.TestCase):
    """A test that removes its programs, and shows what they said if it failed."""

    def start(self, program):
        self.addCleanup(program.remove)
        return program.start()

    def listen(self, server):
        """Lets a target listen; its port."""
        port = free_port()
        server.call("rtrs_create_transport", trtype="TCP")
        server.call("rtrs_add_listener", listen_address=address(port))
        return port

    def export(self, server, device_path, bdev_name, **more):
        server.call("rnbd_create_export", device_path=device_path, bdev_name=bdev_name,
                    allow_any_host=True, **more)

    def file(self, mib):
        """A file of zeroes for a bdev that outlives its daemon."""
        folder = tempfile.mkdtemp(prefix="rnbd-spdk-", dir="/tmp")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "disk")
        with open(path, "wb") as file:
            file.truncate(mib << 20)
        return path

    def attach(self, client, port, *devices, **more):
        return client.call("bdev_rnbd_attach_controller", **attach_params(port, *devices, **more))

    def assert_refused(self, code, call, *arguments, **params):
        with self.assertRaises(RpcError) as refused:
            call(*arguments, **params)
        self.assertEqual(refused.exception.code, code, refused.exception)
        return refused.exception.message

    def write(self, name, content):
        """A file with this JSON."""
        folder = tempfile.mkdtemp(prefix="rnbd-spdk-", dir="/tmp")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            json.dump(content, file)
        return path

    def initiator_config(self, port, *devices, **more):
        """A configuration file that attaches these devices."""
        call = {"method": "bdev_rnbd_attach_controller",
                "params": attach_params(port, *devices, **more)}
        subsystem = {"subsystem": "bdev", "config": [call]}
        return self.write("config.json", {"subsystems": [subsystem]})

    def verify_meanwhile(self, port, device):
        """Our native initiator writes and reads the device again and again."""
        config = self.initiator_config(port, device)
        command = rnbd_perf(config, device, "-q", "16", "-o", "4096", "-w", "verify", "-t", "3")
        load = Repeated(command)
        self.addCleanup(load.cancel)
        return load

    def run_program(self, program, expected=0):
        """Lets it run to its end; what it printed."""
        self.addCleanup(program.remove)
        with open(program.log, "ab") as log:
            program.process = subprocess.Popen(
                program.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=program.environment)
        self.assertEqual(program.process.wait(10 * PATIENCE), expected, program.tail())
        return program.tail()


def address(port):
    return {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": str(port)}


def attach_params(port, *devices, access_mode="rw", **more):
    return {"name": "R", "sessname": "spdk-test", **address(port),
            "reconnect_delay_sec": 1,
            "devices": [{"device_path": device, "access_mode": access_mode} for device in devices],
            **more}
