#!/usr/bin/env bash
# Measures every budget with an optimised operator and the supervisor as it is shipped.
#
# usage: run-bench.sh [--quick] [NAME]...   NAME: writes, latency, resume, throughput, takeover, open-jobs,
#                                                environments or recovery
set -euo pipefail
cd "$(dirname "$0")/../.."

printf '\n--- building (minutes the first time)\n'
cargo build --locked --profile bench-build --bin dormouse --example testbed
DORMOUSE_SUPERVISOR=$(CARGO_TARGET_DIR=target/supervisor tests/testbed/build-supervisor.sh)
export DORMOUSE_SUPERVISOR
printf '\n--- measuring\n'
exec "${CARGO_TARGET_DIR:-target}/bench-build/examples/testbed" bench "$@"
