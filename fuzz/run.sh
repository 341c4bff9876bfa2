#!/usr/bin/env bash
# Runs the fuzz targets one after the other, on the stable toolchain and without a sanitizer: there is no unsafe code here to
# look into.
#
# usage: run.sh [target]...
#   DORMOUSE_FUZZ_SECONDS  how long each runs (150)
# Begins with the seeds in corpus/<target>; what it finds on the way goes to target/corpus/<target>, and an input that
# breaks a target to artifacts/<target>.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cargo-fuzz >/dev/null || { echo 'cargo-fuzz is missing (cargo install cargo-fuzz --locked)' >&2; exit 1; }
[[ $# -gt 0 ]] || set -- payload masker archive frame key
for fuzzed in "$@"; do
  printf '\n--- fuzz target %s\n' "$fuzzed"
  mkdir -p "fuzz/target/corpus/$fuzzed"
  cargo fuzz run -s none "$fuzzed" "fuzz/target/corpus/$fuzzed" "fuzz/corpus/$fuzzed" -- \
    -max_total_time="${DORMOUSE_FUZZ_SECONDS:-150}" -print_final_stats=1 -verbosity=0
done
