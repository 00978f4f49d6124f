# Builds programs for guests; for the `prepare` of cases. To be sourced after scripts/common.sh.
# shellcheck shell=bash disable=SC2154

# They are copied, so that a build that goes on meanwhile does not change them under a guest. The
# guest finds them under the same name in $RNBD_PROGRAMS.
programs=$cache/vm/programs

# is_kept NAME: built for an earlier run, and good enough for who says so.
is_kept() { [ "${RNBD_VM_KEEP_PROGRAMS:-0}" = 1 ] && [ -e "$programs/$1" ]; }

# keep_program FILE NAME
keep_program() {
    mkdir -p "$programs"
    cp "$1" "$programs/$2.new"
    mv "$programs/$2.new" "$programs/$2"
}

# build_test CRATE TEST NAME: an integration test's program.
build_test() {
    local file
    is_kept "$3" && return
    need_rust
    need_rdma_core
    file=$(cargo test --quiet --locked -p "$1" --test "$2" --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    keep_program "$file" "$3"
}

# Our programs, with the verbs fabric.
build_ours() {
    local program
    need_packages jq=jq nbdcopy=libnbd-bin nbd-client=nbd-client
    is_kept rnbd_perf && return
    need_rust
    need_rdma_core
    cargo build --release --quiet --locked -p rnbd_tgt -p rnbd_perf -p rnbd_rpc \
        --features rnbd_tgt/rdma,rnbd_perf/rdma
    for program in rnbd_tgt rnbd_perf rnbd_rpc; do
        keep_program "target/release/$program" "$program"
    done
}

# Tells how far two processors are from each other.
build_core_distance() {
    is_kept core_distance && return
    need_rust
    cargo build --release --quiet --locked -p rnbd-reactor --example core_distance
    keep_program target/release/examples/core_distance core_distance
}
