#!/usr/bin/env python3
"""SPDK's own client, from PyPI, against our server, with and without our plugin.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install spdk
    cargo build -p rnbd-rpc --example echo_methods
    /tmp/venv/bin/python scripts/test_rnbd_plugin.py target/debug/examples/echo_methods
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parent
SERVER = None


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.socket = os.path.join(cls.directory.name, 'rpc.sock')
        cls.server = subprocess.Popen([SERVER, cls.socket])

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        cls.server.wait()
        cls.directory.cleanup()

    def client(self, *words, plugin=True, stdin=None):
        # 50 tries, 200 ms apart, until the server listens.
        command = [sys.executable, '-m', 'spdk.spdk_rpc', '-s', self.socket, '-r', '50']
        command += ['--plugin', 'rnbd_plugin'] * plugin
        environment = {**os.environ, 'PYTHONPATH': str(SCRIPTS)}
        return subprocess.run([*command, *words], env=environment, input=stdin or '',
                              capture_output=True, text=True, check=False)

    def params(self, *words, plugin=True):
        """The parameters that reach the method, which must be that of the first word."""
        done = self.client(*words, plugin=plugin)
        self.assertEqual((done.returncode, done.stderr), (0, ''), done.stdout)
        reply = json.loads(done.stdout)
        self.assertEqual(reply['method'], words[0])
        return reply['params']

    def assert_has(self, params, **expected):
        self.assertEqual({**params, **expected}, params)


class OurMethods(ClientTest):
    def test_every_method_of_the_schema_is_a_command(self):
        schema = json.loads((SCRIPTS / 'rnbd_schema.json').read_text(encoding='utf-8'))
        listed = self.client('--help').stdout.split()
        missing = [m['name'] for m in schema['methods'] if m['name'] not in listed]
        self.assertEqual(missing, [])

    def test_every_command_of_the_plugin_has_help(self):
        schema = json.loads((SCRIPTS / 'rnbd_schema.json').read_text(encoding='utf-8'))
        lines = ''.join(f'{method["name"]} --help\n' for method in schema['methods'])
        command = [sys.executable, '-m', 'spdk.spdk_rpc', '--server']
        lines = ''.join(f'--plugin rnbd_plugin {line}' for line in lines.splitlines(True))
        environment = {**os.environ, 'PYTHONPATH': str(SCRIPTS)}
        done = subprocess.run(command, env=environment, input=lines, capture_output=True,
                              text=True, check=True)
        self.assertEqual(done.stderr, '')
        self.assertEqual(done.stdout.count('usage:'), len(schema['methods']))

    def test_options_reach_the_method_with_their_types(self):
        params = self.params('bdev_rnbd_attach_controller', '--name', 'R0', '--sessname', 's',
                             '--trtype', 'tcp', '--traddr', '192.0.2.1', '--num-io-queues', '0x2',
                             '--devices', '[{"device_path": "disk"}]')
        self.assert_has(params, name='R0', sessname='s', trtype='TCP', traddr='192.0.2.1',
                        trsvcid='1234', num_io_queues=2,
                        devices=[{'device_path': 'disk', 'access_mode': 'rw'}])

    def test_members_of_an_object_are_options(self):
        params = self.params('rtrs_add_listener', '--traddr', '::1', '--trsvcid', '4000')
        address = {'trtype': 'TCP', 'traddr': '::1', 'trsvcid': '4000'}
        self.assertEqual(params['listen_address'], {**params['listen_address'], **address})

    def test_booleans_have_both_forms(self):
        for word, value in (('--read-only', True), ('--no-read-only', False)):
            params = self.params('rnbd_create_export', '--device-path', 'd', '--bdev-name', 'b', word)
            self.assertIs(params['read_only'], value)

    def test_a_method_without_parameters_gets_none(self):
        self.assertEqual(self.params('rtrs_get_listeners'), {})

    def test_refusals_come_from_the_client_or_the_server(self):
        missing = self.client('rnbd_delete_export')
        self.assertEqual(missing.returncode, 2)
        self.assertIn('--device-path', missing.stderr)
        wrong = self.client('rtrs_add_listener', '--traddr', 'x', '--trtype', 'carrier-pigeon')
        self.assertEqual(wrong.returncode, 1)
        self.assertIn("'listen_address.trtype' must be one of TCP, RDMA, SHM", wrong.stdout)


class MethodsOfSpdk(ClientTest):
    """What the client sends of itself fits our schema."""

    def test_creating(self):
        params = self.params('bdev_malloc_create', '-b', 'M0', '64', '512', plugin=False)
        self.assert_has(params, name='M0', num_blocks=131072, block_size=512)
        params = self.params('bdev_null_create', 'N0', '1', '4096', plugin=False)
        self.assert_has(params, name='N0', num_blocks=256)
        params = self.params('bdev_uring_create', '/dev/null', 'U0', '512', plugin=False)
        self.assert_has(params, filename='/dev/null', name='U0', block_size=512)
        params = self.params('bdev_delay_create', '-b', 'M0', '-d', 'D0', '-r', '1', '-t', '2',
                             '-w', '3', '-n', '4', plugin=False)
        self.assert_has(params, base_bdev_name='M0', p99_write_latency=4)
        self.assert_has(self.params('bdev_error_create', 'M0', plugin=False), base_name='M0')

    def test_reading(self):
        for command in ('framework_get_reactors', 'framework_get_subsystems', 'thread_get_stats',
                        'thread_get_pollers', 'thread_get_io_channels',
                        'bdev_get_bdevs', 'bdev_get_iostat', 'log_get_flags', 'log_get_level',
                        'notify_get_types', 'notify_get_notifications', 'spdk_get_version'):
            with self.subTest(command):
                self.params(command, plugin=False)
        self.params('bdev_get_iostat', '--names', 'a,b', '--reset-mode', 'maxmin', plugin=False)
        self.params('framework_get_config', 'bdev', plugin=False)

    def test_changing(self):
        for words in (('bdev_enable_histogram', 'b', '--histogram'),
                      ('bdev_error_inject_error', 'b', 'read', 'corrupt_data', '-n', '2'),
                      ('bdev_delay_update_latency', 'd', 'p99_read', '7'),
                      ('bdev_reset_iostat', '-b', 'b', '-m', 'all'),
                      ('bdev_null_resize', 'n', '9'),
                      ('log_set_level', 'DEBUG'),
                      ('log_set_flag', 'rtrs'),
                      ('thread_set_cpumask', '-i', '1', '-m', '0x1'),
                      ('bdev_malloc_delete', 'm')):
            with self.subTest(words[0]):
                done = self.client(*words, plugin=False)
                self.assertEqual((done.returncode, done.stderr), (0, ''), done.stdout)

    def test_a_refusal_is_shown_and_exits_with_1(self):
        done = self.client('bdev_malloc_create', '-b', 'M0', '64', '100', plugin=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("'block_size' must be from 512 to 4294967295", done.stdout)

    def test_a_batch(self):
        done = self.client('-b', plugin=False, stdin='log_get_level\nlog_get_print_level\n')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('log_get_print_level', done.stdout)


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('usage: test_rnbd_plugin.py ECHO_METHODS')
    SERVER = sys.argv.pop(1)
    unittest.main()
