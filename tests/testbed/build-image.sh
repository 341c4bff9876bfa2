#!/usr/bin/env bash
# Assembles the container image without a container engine, from an operator and a supervisor that it builds first.
#
# usage: build-image.sh --rootfs FOLDER [--archive TAR --name NAME:TAG] [--operator FILE] [--supervisor FILE]...
#   FOLDER gets the image's files, TAR the OCI archive. What is given as FILE is not built. An image for hosts of
#   both architectures needs both supervisors; each is built on a machine of its own.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

rootfs='' archive='' name='' operator='' supervisors=()
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --rootfs) rootfs=$2 ;;
    --archive) archive=$2 ;;
    --name) name=$2 ;;
    --operator) operator=$2 ;;
    --supervisor) supervisors+=(--supervisor "$2") ;;
    *) usage ;;
  esac
  shift 2
done
[ -n "$rootfs" ] || usage
[ -z "$archive" ] || [ -n "$name" ] || usage

here=$(cd -- "$(dirname -- "$0")" && pwd)
project=$(cd -- "$here/../.." && pwd)

if [ -z "$operator" ]; then
  (cd "$project" && cargo build --locked --release --bin dormouse >&2)
  operator=${CARGO_TARGET_DIR:-$project/target}/release/dormouse
fi
[ ${#supervisors[@]} -gt 0 ] || supervisors=(--supervisor "$("$here/build-supervisor.sh" | tail -n 1)")
"$here/image.py" rootfs "$rootfs" --operator "$operator" "${supervisors[@]}"

[ -n "$archive" ] || exit 0
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$project/Cargo.toml" | head -n 1)
revision=$(git -C "$project" rev-parse --verify --quiet HEAD || true)
"$here/image.py" archive "$archive" --name "$name" --root "$rootfs" --entrypoint /usr/bin/dormouse \
  --version "$version" --revision "$revision"
