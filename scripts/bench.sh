#!/usr/bin/env bash
# Measures rnbd over TCP against other servers on the same two cores in one run, and prints a table.
#
#   scripts/bench.sh [--runs N] [--seconds N] [--spdk DIR] [--nbd] [--instructions] [--out FILE]
#
# nbdkit's memory plugin with fio's nbd engine is always measured; SPDK's NVMe/TCP with bdevperf only
# where --spdk names a build of it. --nbd compares the NBD export with nbdkit instead. Targets run on core 0, initiators on core 1.
source "$(dirname "$0")/common.sh"
need_rust
need_packages python3=python3 fio=fio nbdkit=nbdkit
build_release
case " $* " in *" --instructions "*)
    need_packages valgrind=valgrind
    (cd "$repo" && cargo build --release --quiet --locked -p bdev-rnbd --example io_count) ;;
esac
exec python3 "$repo/scripts/perf/bench.py" "$@"
