#!/bin/sh
# Builds the programs of the test bed's control plane from the pinned Go modules of tools/ and prints
# the folder they are in as the last line of stdout; progress goes to stderr.
#
#   build-tools.sh [all | NAME...]     default: etcd kube-apiserver kube-controller-manager kubectl helm
#
# The folder is named after go.mod and go.sum, so it is built once and again only when a pin changes.
# Safe to call from several processes at once: the others wait for the first.
set -eu

usual='etcd kubectl helm kube-controller-manager kube-apiserver'
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
modules=$here/tools
cache=${DORMOUSE_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME, XDG_CACHE_HOME or DORMOUSE_CACHE must be set}/.cache}/dormouse}

say() { printf '%s\n' "$*" >&2; }
fail() { say "build-tools: $*"; exit 1; }

package_of() {
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    helm) echo helm.sh/helm/v4/cmd/helm ;;
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kubectl) echo "k8s.io/kubernetes/cmd/$1" ;;
    *) fail "unknown program '$1'; known: $usual kubelet kube-scheduler" ;;
  esac
}

# Says what to install when `go` is absent or older than go.mod asks for.
require_go() {
  version=$(sed -n 's/^go //p' "$modules/go.mod")
  command -v go >/dev/null 2>&1 || fail "Go $version or newer is needed to build the control plane and 'go' is not on PATH; get it from https://go.dev/dl/"
  (cd "$modules" && go list -m >/dev/null) || fail "Go $version or newer is needed, found '$(cd / && go version)'; get it from https://go.dev/dl/, or set GOTOOLCHAIN=auto"
}

version_of() { (cd "$modules" && go list -m -f '{{.Version}}' "$1"); }

# kubectl and helm refuse to talk to a server whose version they cannot parse, and a plain `go build` leaves it empty.
link_flags() {
  kubernetes=$(version_of k8s.io/kubernetes)
  helm=$(version_of helm.sh/helm/v4)
  major=${kubernetes#v}; minor=${major#*.}; major=${major%%.*}; minor=${minor%%.*}
  stamp=k8s.io/component-base/version
  echo "-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor" \
    "-X helm.sh/helm/v4/internal/version.version=$helm"
}

build() {
  started=$(date +%s)
  say "build-tools: $1 ..."
  (cd "$modules" && GOWORK=off CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$folder/.$1.new" "$(package_of "$1")" >&2) \
    || fail "building $1 failed; the Go module proxy must be reachable for the first build (go env GOPROXY)"
  mv "$folder/.$1.new" "$folder/$1"
  say "build-tools: $1 built in $(($(date +%s) - started)) s"
}

case ${1-} in
  '') wanted=$usual ;;
  all) wanted="$usual kube-scheduler kubelet" ;;
  *) wanted=$* ;;
esac

hash=$(cat "$modules/go.mod" "$modules/go.sum" | sha256sum | cut -c1-16)
folder=$cache/tools/$hash
mkdir -p "$folder"

missing() { for name in $wanted; do package_of "$name" >/dev/null; [ -x "$folder/$name" ] || printf '%s ' "$name"; done; }

if [ -n "$(missing)" ]; then
  require_go
  exec 9>"$folder/.lock"
  flock -n 9 || { say "build-tools: another build into $folder is under way, waiting for it"; flock 9; }
  todo=$(missing)
  if [ -n "$todo" ]; then
    say "build-tools: building ${todo}into $folder; the first time takes 5 to 10 minutes on two cores and 7 GB of Go caches"
    flags=$(link_flags)
    for name in $todo; do build "$name"; done
  fi
fi
printf '%s\n' "$folder"
