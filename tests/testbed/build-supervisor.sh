#!/usr/bin/env bash
# Builds the static dormouse-supervisor and puts it where the tests and the operator's image look for it.
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

cache="${DORMOUSE_CACHE:-$HOME/.cache/dormouse}/supervisor"
built="${CARGO_TARGET_DIR:-target}/$target/$profile/dormouse-supervisor"
mkdir -p "$cache"
# By rename: a running supervisor's file cannot be written to, and nobody may see half of one.
install -m 755 "$built" "$cache/.dormouse-supervisor-$machine.$$"
mv -f "$cache/.dormouse-supervisor-$machine.$$" "$cache/dormouse-supervisor-$machine"
echo "$cache/dormouse-supervisor-$machine"
