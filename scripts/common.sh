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

# What lib/verbs is built from; the rest of the workspace builds without.
need_rdma_core() {
    need_packages /usr/include/infiniband/verbs.h=libibverbs-dev \
        /usr/include/rdma/rdma_cma.h=librdmacm-dev clang=clang pkg-config=pkg-config
    # The bindings are made with libclang, whose folder carries its version.
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        need_packages /usr/lib/llvm/libclang.so=libclang-dev
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
