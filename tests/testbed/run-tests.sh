#!/usr/bin/env bash
# Runs every test of the project and closes with the counts of all of them, and with what failed and why. Leaves no
# process behind.
set -uo pipefail
cd "$(dirname "$0")/../.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# The tests' errors carry their own context; fifty frames of the runtime around each would push them out of a log.
export RUST_BACKTRACE=${DORMOUSE_TEST_BACKTRACE:-0}

run() {
  printf '\n--- %s\n' "$1"
  shift
  "$@" 2>&1 | tee -a "$log" || status=1
}

DORMOUSE_SUPERVISOR=$(CARGO_TARGET_DIR=target/supervisor tests/testbed/build-supervisor.sh --test) || exit 1
export DORMOUSE_SUPERVISOR
tests/testbed/build-cloud.sh >/dev/null || exit 1

run 'supervisor: unit and property tests' \
  cargo test --locked --no-default-features --features supervisor --lib
run 'operator: unit and property tests' cargo test --locked --lib --bins
run 'whole tests, on a real API server, real sshd hosts and the GitLab stand-in' \
  cargo test --locked --test dormouse -- --test-threads "${DORMOUSE_TEST_THREADS:-4}"

# What a failed test printed begins with its name between dashes; the end of it says most, the rest stands above.
awk '/^---- .* stdout ----$/ { name = $2; next }
     /^failures:$/ || /^test result:/ { name = "" }
     name != "" { text[name] = text[name] substr($0, 1, 500) "\n" }
     END { for (name in text) printf "\n--- failed: %s\n%s", name, substr(text[name], length(text[name]) - 2500) }' "$log"
awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
     END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$status"
