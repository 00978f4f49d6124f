"""Our RPC methods as commands of SPDK's client.

    pip install spdk
    PYTHONPATH=scripts spdk-rpc -s SOCK --plugin rnbd_plugin bdev_rnbd_get_controllers

Every method of rnbd_schema.json (written from rpc/schema.yaml) that the client does not have
itself becomes a command, and every parameter an option: `device_path` is `--device-path`. Members
of an object are options of their own; an array is given as words separated by commas, and an array
of objects as JSON.
"""

import argparse
import functools
import json
import pathlib

from spdk.rpc import cmd_parser

SCHEMA = pathlib.Path(__file__).with_name('rnbd_schema.json')
# Destinations of the client's own options, such as `timeout`, must stay free.
PREFIX = 'rnbd_param_'
INTEGERS = ('uint8', 'uint16', 'uint32', 'uint64', 'int32')


def spdk_rpc_plugin_initialize(subparsers):
    schema = Schema(json.loads(SCHEMA.read_text(encoding='utf-8')))
    for method in schema.methods:
        if method['name'] not in subparsers.choices and not method.get('private'):
            add_command(subparsers, schema, method)


class Schema:
    """The schema, with its classes by name."""

    def __init__(self, schema):
        self.methods = schema['methods']
        self.enums = {e['name']: [f['name'] for f in e['fields']] for e in schema['enums']}
        self.objects = {o['name']: o['fields'] for o in schema['objects']}
        self.arrays = {a['name']: a for a in schema['arrays']}

    def options(self, params, outer=()):
        """Every parameter that becomes an option, with the keys that lead to it."""
        for param in params:
            path = (*outer, param['name'])
            if param['type'] == 'object':
                yield from self.options(self.objects[param['class']], path)
            else:
                yield path, param


def add_command(subparsers, schema, method):
    summary = ' '.join(method['description'].split())
    parser = subparsers.add_parser(method['name'], help=escape(summary), description=escape(summary))
    for path, param in schema.options(method.get('params', [])):
        add_option(parser, schema, path, param)
    parser.set_defaults(func=functools.partial(run, method['name']))


def add_option(parser, schema, path, param):
    flag = '--' + param['name'].replace('_', '-')
    options = {
        'dest': PREFIX + '.'.join(path),
        'help': escape(describe(param)),
        'required': param.get('required', False),
    }
    parser.add_argument(flag, **options, **value_options(schema, param))


def value_options(schema, param):
    """How argparse reads a value of the parameter's type."""
    if param['type'] == 'boolean':
        return {'action': argparse.BooleanOptionalAction}
    name = param['name'].upper()
    if param['type'] in INTEGERS:
        return {'type': integer, 'metavar': name}
    if param['type'] == 'array':
        return {'type': array_reader(schema.arrays[param['class']]), 'metavar': name}
    if param['type'] == 'enum':
        return {'metavar': '{' + ','.join(schema.enums[param['class']]) + '}'}
    return {'metavar': name}


def integer(text):
    return int(text, 0)


def array_reader(array):
    if array['item_type'] == 'object':
        return json.loads
    return lambda text: text.split(',')


def describe(param):
    text = ' '.join(param['description'].split())
    if 'default' not in param:
        return text
    return f'{text} Default: {json.dumps(param["default"])}'


def escape(text):
    """argparse formats help texts with `%`."""
    return text.replace('%', '%%')


def run(method, args):
    params = {}
    for dest, value in vars(args).items():
        if dest.startswith(PREFIX) and value is not None:
            put(params, dest.removeprefix(PREFIX).split('.'), value)
    show(args.client.call(method, params))


def put(params, path, value):
    for key in path[:-1]:
        params = params.setdefault(key, {})
    params[path[-1]] = value


def show(result):
    """As SPDK's own commands do: names bare, reads as JSON, and nothing for mere success."""
    if isinstance(result, str):
        cmd_parser.print_json(result)
    elif result is not None and result is not True:
        cmd_parser.print_dict(result)
