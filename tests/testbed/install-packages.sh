#!/bin/sh
# Installs, with apt-get and only what is missing, the system programs the test bed starts.
#
#   install-packages.sh [pod]     pod: also what the test with a real kubelet needs
#
# Nothing is left running or enabled by it: the bed starts its own sshd and containerd.
set -eu

say() { printf '%s\n' "install-packages: $*" >&2; }

# program, its Debian package, what the bed uses it for
programs='
sshd openssh-server the hosts jobs run on
ssh openssh-client the bed looking into its hosts
ssh-keygen openssh-client keys of hosts and clients
openssl openssl keys of the API server
git git sources of jobs, and git http-backend in the GitLab stand-in
git-lfs git-lfs large files in sources of jobs
unshare util-linux hosts with their own processes and disk
setpriv util-linux servers that end with the test that started them
losetup mount volumes as block devices of hosts
python3 python3 the stand-in for AWS
mkfs.ext4 e2fsprogs file systems on volumes
pgrep procps tests that look for processes on hosts
ip iproute2 addresses of pods'
pod_programs='
containerd containerd containers of the real pod
runc runc containers of the real pod'

[ "${1-}" != pod ] || programs=$programs$pod_programs

PATH=$PATH:/usr/sbin:/sbin
missing() {
  printf '%s\n' "$programs" | while read -r program package why; do
    [ -z "$program" ] || command -v "$program" >/dev/null 2>&1 || printf '%s %s %s\n' "$package" "$program" "$why"
  done
  # No program tells whether Python can make environments of its own.
  python3 -c 'import venv, ensurepip' 2>/dev/null || printf 'python3-venv venv the environment of the stand-in for AWS\n'
}

absent=$(missing)
[ -n "$absent" ] || exit 0
printf '%s\n' "$absent" | while read -r package program why; do say "'$program' is missing ($why): package $package"; done
packages=$(printf '%s\n' "$absent" | cut -d' ' -f1 | sort -u | tr '\n' ' ')

command -v apt-get >/dev/null 2>&1 || { say "no apt-get here; install by hand: $packages"; exit 1; }
[ "$(id -u)" = 0 ] || { say "not root; run once: sudo apt-get install -y $packages"; exit 1; }

# A package that brings a service starts it at once unless this file says no (101).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 1' INT TERM
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

# One installation at a time; what another one has just installed is found present below.
exec 9<"$0"
flock 9

say "installing $packages"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086 # a list of package names
if ! { apt-get update -q && apt-get install -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends $packages; } >"$log" 2>&1; then
  cat "$log" >&2
  rm -f "$log"
  say "apt-get failed, see above"
  exit 1
fi
rm -f "$log"

if [ -d /run/systemd/system ]; then
  for package in $packages; do
    case $package in
      openssh-server) systemctl disable --quiet --now ssh.service ssh.socket 2>/dev/null || say "could not disable ssh.service; see: systemctl status ssh" ;;
      containerd) systemctl disable --quiet --now containerd.service || say "could not disable containerd.service" ;;
    esac
  done
fi

absent=$(missing)
[ -z "$absent" ] || { say "still missing after the installation: $absent"; exit 1; }
say "done"
