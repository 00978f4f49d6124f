# Shared by the scripts here; to be sourced. Sets up what a fresh Debian 12 lacks.
# shellcheck shell=bash

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache="$repo/.cache"
mkdir -p "$cache"

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages COMMAND=PACKAGE...: installs the packages whose command or file is not there.
need_packages() {
    local pair probe missing=()
    for pair in "$@"; do
        probe=${pair%%=*}
        [ -e "$probe" ] || command -v "$probe" >/dev/null 2>&1 || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    as_root apt-get update -qq >/dev/null 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" \
        >"$cache/apt.log" 2>&1 || { tail -5 "$cache/apt.log" >&2; die "could not install ${missing[*]}"; }
}

# Rust of the version that Cargo.toml names, or newer.
need_rust() {
    need_packages cc=gcc ld=binutils /usr/include/stdio.h=libc6-dev \
        /etc/ssl/certs/ca-certificates.crt=ca-certificates
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml" | head -1)
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2 || true)
    if [ -z "$found" ] || ! printf '%s\n%s\n' "$wanted" "$found" | sort -V -C; then
        # Debian 12's own rustc is older; these packages are kept current for building browsers.
        need_packages /usr/lib/rust-web=rustc-web /usr/lib/cargo-web=cargo-web \
            /usr/lib/rustfmt-web=rustfmt-web /usr/lib/clippy-web=rust-web-clippy
        hash -r
    fi
    found=$(rustc --version | cut -d' ' -f2)
    printf '%s\n%s\n' "$wanted" "$found" | sort -V -C || die "Rust $wanted is needed, found $found"
}

# What bindings are made with.
need_libclang() {
    need_packages clang=clang
    # Its folder carries its version.
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        need_packages /usr/lib/llvm/libclang.so=libclang-dev
}

# What lib/verbs is built from; the rest of the workspace builds without.
need_rdma_core() {
    need_packages /usr/include/infiniband/verbs.h=libibverbs-dev \
        /usr/include/rdma/rdma_cma.h=librdmacm-dev pkg-config=pkg-config
    need_libclang
}

# What app/fio_rnbd is built from: the source of the fio that is installed, configured, in FIO_DIR.
need_fio_source() {
    need_packages fio=fio
    need_libclang
    [ -z "${FIO_DIR:-}" ] || return 0
    export FIO_DIR="$cache/fio/source"
    local installed
    installed=$(fio --version)
    grep -qsx "FIO_VERSION = $installed" "$FIO_DIR/FIO-VERSION-FILE" && return
    say "fetching the source of $installed"
    need_packages dpkg-source=dpkg-dev cc=gcc
    rm -rf "$cache/fio"
    mkdir -p "$cache/fio/lists/partial" "$cache/fio/sources"
    (cd "$cache/fio" && fetch_fio_source) >"$cache/fio.log" 2>&1 ||
        { tail -5 "$cache/fio.log" >&2; die "no source of $installed (set FIO_DIR to a place that has it)"; }
}

# Where packages come from, their sources do too, whether apt is set up to list them or not. Its caller
# looks at the status, so that `set -e` is off here.
fetch_fio_source() {
    local version file options
    version=$(dpkg-query -W -f '${source:Version}' fio)
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ ! -e "$file" ] || sed -n 's/^deb /deb-src /p' "$file" >"sources/${file##*/}"
    done
    mv -f sources/sources.list sources/main.list 2>/dev/null || true
    for file in /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"sources/${file##*/}"
    done
    options=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$PWD/sources"
        -o "Dir::State::Lists=$PWD/lists" -o APT::Sandbox::User=)
    # A place without sources is none of ours.
    apt-get "${options[@]}" update || true
    apt-get "${options[@]}" --download-only source "fio=$version" &&
        dpkg-source --no-check -x fio_*.dsc unpacked &&
        (cd unpacked && ./configure --disable-native && ./FIO-VERSION-GEN) &&
        mv unpacked source
}

# target/release/fio-rnbd.so, for the fio that is installed.
build_fio_engine() {
    need_rust
    need_fio_source
    say "building the fio engine (release)"
    (cd "$repo" && cargo build --release --quiet --locked -p fio_rnbd --features fio "$@" &&
        cp -f target/release/libfio_rnbd.so target/release/fio-rnbd.so)
}

# Python with the PyPI packages named, in a folder of its own.
need_python() {
    local venv="$cache/venv"
    need_packages python3=python3 /usr/share/doc/python3-venv=python3-venv
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -c 'import importlib.metadata as m, sys; [m.version(p) for p in sys.argv[1:]]' \
        "$@" 2>/dev/null ||
        "$venv/bin/pip" install -q --disable-pip-version-check "$@"
}

build_release() {
    say "building (release)"
    (cd "$repo" && cargo build --release --quiet --locked -p rnbd_tgt -p rnbd_perf -p rnbd_rpc \
        -p rnbd_top)
}
