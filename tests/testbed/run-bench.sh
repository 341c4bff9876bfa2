#!/usr/bin/env bash
# Measures every budget with an optimised operator and the supervisor as it is shipped.
#
# usage: run-bench.sh [--quick] [NAME]...   NAME: planner, writes, latency, resume, cloud-calls, cloud-resume,
#                                                throughput, takeover, open-jobs, environments, recovery, artifacts,
#                                                logs or sources
set -euo pipefail
cd "$(dirname "$0")/../.."

printf '\n--- building (minutes the first time)\n'
cargo build --locked --profile bench-build --bin dormouse --example testbed
DORMOUSE_SUPERVISOR=$(CARGO_TARGET_DIR=target/supervisor tests/testbed/build-supervisor.sh)
export DORMOUSE_SUPERVISOR
tests/testbed/build-cloud.sh >/dev/null
printf '\n--- measuring\n'
exec "${CARGO_TARGET_DIR:-target}/bench-build/examples/testbed" bench "$@"
