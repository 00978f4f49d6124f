# shellcheck shell=bash disable=SC2034
about="the verbs fabric passes the conformance suite of all fabrics on soft-RoCE"
limit=240

prepare() { build_test rnbd-verbs conformance conformance; }

run() {
    RNBD_VERBS_REQUIRED=1 RNBD_VERBS_ADDRESS=10.9.0.1 "$RNBD_PROGRAMS/conformance" --test-threads=1
}
