#!/bin/sh
# Makes the Python environment of the stand-in for AWS from the pins of aws/requirements.txt and aws/constraints.txt and
# prints its folder as the last line of stdout; progress goes to stderr.
#
# The folder is named after the pins, so it is made once and again only when a pin changes. Safe to call from several
# processes at once: the others wait for the first.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
pins=$here/aws
cache=${DORMOUSE_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME, XDG_CACHE_HOME or DORMOUSE_CACHE must be set}/.cache}/dormouse}

say() { printf '%s\n' "build-cloud: $*" >&2; }
fail() { say "$*"; exit 1; }

require_python() {
  command -v python3 >/dev/null 2>&1 || fail "Python 3.11 or newer is needed for the stand-in for AWS and 'python3' is not on PATH; on Debian: apt-get install python3 python3-venv"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed, found '$(python3 --version)'"
  python3 -c 'import venv, ensurepip' 2>/dev/null || fail "Python's modules venv and ensurepip are missing; on Debian: apt-get install python3-venv"
}

make() {
  rm -rf "$folder.new"
  say "making $folder; the first time takes half a minute"
  python3 -m venv "$folder.new" >&2 || fail "python3 -m venv failed, see above"
  "$folder.new/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --requirement "$pins/requirements.txt" --constraint "$pins/constraints.txt" >&2 \
    || fail "pip failed, see above; a Python package index must be reachable for the first build (pip config list)"
  "$folder.new/bin/python" -c 'import moto.server' || fail "the packages are installed and moto does not start, see above"
  # Scripts of a moved environment name the old place; only its python is used, by its path.
  mv "$folder.new" "$folder"
}

hash=$(cat "$pins/requirements.txt" "$pins/constraints.txt" | sha256sum | cut -c1-16)
folder=$cache/cloud/$hash
mkdir -p "$cache/cloud"

if [ ! -x "$folder/bin/python" ]; then
  require_python
  exec 9>"$cache/cloud/.lock"
  flock -n 9 || { say "another process makes the environment, waiting for it"; flock 9; }
  [ -x "$folder/bin/python" ] || make
fi
printf '%s\n' "$folder"
