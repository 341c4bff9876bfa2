#!/usr/bin/env bash
# Runs every test of the project and closes with the counts of all of them. Leaves no process behind.
set -uo pipefail
cd "$(dirname "$0")/../.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

run() {
  printf '\n--- %s\n' "$1"
  shift
  "$@" 2>&1 | tee -a "$log" || status=1
}

DORMOUSE_SUPERVISOR=$(CARGO_TARGET_DIR=target/supervisor tests/testbed/build-supervisor.sh --test) || exit 1
export DORMOUSE_SUPERVISOR

run 'supervisor: unit and property tests' \
  cargo test --locked --no-default-features --features supervisor --lib
run 'operator: unit and property tests' cargo test --locked --lib --bins
run 'whole tests, on a real API server, real sshd hosts and the GitLab stand-in' \
  cargo test --locked --test dormouse -- --test-threads "${DORMOUSE_TEST_THREADS:-4}"

awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
     END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$status"
