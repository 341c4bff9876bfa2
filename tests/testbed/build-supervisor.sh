#!/usr/bin/env bash
# Builds the static dormouse-supervisor and prints where it is.
#
# usage: build-supervisor.sh [--test]
#   --test  a profile that builds in seconds, for tests; without it, the small one that is shipped
set -euo pipefail

profile=supervisor
case "${1:-}" in
  --test) profile=supervisor-test ;;
  "") ;;
  *) echo "usage: $0 [--test]" >&2; exit 2 ;;
esac

cd "$(dirname "$0")/../.."
machine=$(uname -m)
case "$machine" in
  x86_64 | aarch64) target="$machine-unknown-linux-gnu" ;;
  *) echo "dormouse-supervisor runs on x86_64 and aarch64, not on $machine" >&2; exit 1 ;;
esac

RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --profile "$profile" \
  --no-default-features --features supervisor --bin dormouse-supervisor --target "$target"

target_dir=${CARGO_TARGET_DIR:-$PWD/target}
built="$target_dir/$target/$profile/dormouse-supervisor"
# Beside the build, one folder a profile: two checkouts, or a test and a release, never take each other's.
folder="$target_dir/$profile-supervisors"
mkdir -p "$folder"
# By rename: a running supervisor's file cannot be written to, and nobody may see half of one.
install -m 755 "$built" "$folder/.dormouse-supervisor-$machine.$$"
mv -f "$folder/.dormouse-supervisor-$machine.$$" "$folder/dormouse-supervisor-$machine"
readlink -f "$folder/dormouse-supervisor-$machine"
