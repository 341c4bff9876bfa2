#!/usr/bin/env bash
# Shows that cases can fail: builds the product with each fault of tests/conformance/faults, and plays the cases that the
# fault names, each of which has to fail, beside one that has to go on well.
#
# usage: run-faults.sh [fault]...
#   A fault is a patch; its first lines say what it is and, a line each, `Breaks: <area>/<case>`. It is built into the
#   supervisor, or with a line `Program: operator` into the operator.
# Keeps in target/faults: the patched sources, and the log of each fault.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly faults=tests/conformance/faults work=$PWD/target/faults
readonly target="$(uname -m)-unknown-linux-gnu"
missed=0

# The sources as they are, uncommitted changes too, patched.
prepare() {
  rm -rf "$work/tree"
  mkdir -p "$work/tree"
  git ls-files -z -- Cargo.toml Cargo.lock rust-toolchain.toml src tests/main.rs tests/testbed/main.rs \
    | xargs -0 cp --parents -t "$work/tree"
  # Without a repository of its own, git would take the paths for ones of the repository around it, and skip them.
  GIT_CEILING_DIRECTORIES=$work git -C "$work/tree" apply "$1"
}

# Folders of their own for what is built: to cargo the patched sources are the same package as the sound ones, and in one
# folder it would take a faulty program for the sound one afterwards. The dependencies are those of the sound program, by
# links to what is built already.
seed() {
  rm -rf "${2:?}"
  mkdir -p "$(dirname "$2")"
  cp -al "$1" "$2"
  find "$2" \( -name incremental -o -name '*dormouse*' \) -prune -exec rm -rf {} +
}

# Of the patched sources only what changed is built.
build() (
  export CARGO_INCREMENTAL=1
  cd "$work/tree"
  # Where one of these fails, that is the answer: an older program must not stand in for this one.
  if [[ $1 == operator ]]; then
    CARGO_TARGET_DIR="$work/operator" cargo build --quiet --locked --bin dormouse \
      && install -m 755 "$work/operator/debug/dormouse" "$work/dormouse"
  else
    RUSTFLAGS='-C target-feature=+crt-static' CARGO_TARGET_DIR="$work/supervisor" \
      cargo build --quiet --locked --profile supervisor-test --no-default-features --features supervisor \
      --bin dormouse-supervisor --target "$target" \
      && install -m 755 "$work/supervisor/$target/supervisor-test/dormouse-supervisor" \
        "$work/dormouse-supervisor-$(uname -m)"
  fi
)

try_fault() {
  local name=$1 case program log="$work/$1.log" sound=kinds/empty-steps-are-skipped
  local -a cases
  mapfile -t cases < <(sed -n 's/^Breaks: //p' "$faults/$name.patch")
  [[ ${#cases[@]} -gt 0 ]] || { echo "$name: names no case"; return 1; }
  for case in "${cases[@]}"; do
    [[ -f tests/conformance/cases/$case.yaml ]] || { echo "$name: there is no case $case"; return 1; }
  done
  # The case that is to go on well is another one where it is what the fault breaks.
  [[ " ${cases[*]} " != *" $sound "* ]] || sound=log/empty-lines-are-kept
  program=$(sed -n 's/^Program: //p' "$faults/$name.patch")
  [[ ${program:-supervisor} =~ ^(supervisor|operator)$ ]] || { echo "$name: there is no program $program"; return 1; }
  prepare "$PWD/$faults/$name.patch" || { echo "$name: does not fit the sources any more"; return 1; }
  build "${program:-supervisor}" || { echo "$name: cannot be built"; return 1; }
  local filters
  filters=$(printf 'conformance::%s\n' "${cases[@]%%/*}" "${sound%%/*}" | sort -u)
  # A sound program stands in for the one that the fault is not in.
  local -a faulty=("DORMOUSE_SUPERVISOR=$work/dormouse-supervisor-$(uname -m)")
  [[ $program != operator ]] || faulty=("DORMOUSE_OPERATOR=$work/dormouse")
  # It fails, as it should; its log says how.
  # shellcheck disable=SC2086
  env "${faulty[@]}" DORMOUSE_CASE="$sound ${cases[*]}" \
    cargo test --quiet --locked --test dormouse -- --nocapture $filters >"$log" 2>&1 || true
  grep -aqF "conformance $sound ... ok" "$log" || { echo "$name: breaks $sound too, or nothing ran: $log"; return 1; }
  for case in "${cases[@]}"; do
    grep -aqF "conformance $case ... FAILED" "$log" || { echo "$name: $case does not fail: $log"; return 1; }
  done
  echo "$name: found by ${cases[*]}"
}

mkdir -p "$work"
# What the cases are played with besides, and the dependencies of both programs.
cargo build --quiet --locked --bin dormouse
CARGO_TARGET_DIR=target/supervisor tests/testbed/build-supervisor.sh --test >/dev/null
seed target/debug "$work/operator/debug"
seed target/supervisor "$work/supervisor"
[[ $# -gt 0 ]] || set -- $(cd "$faults" && ls -- *.patch)
for fault in "$@"; do
  try_fault "${fault%.patch}" || missed=$((missed + 1))
done
[[ $missed -eq 0 ]] || { echo "$missed of $# faults are not found"; exit 1; }
