#!/bin/sh
# Boots one host of the test bed: its own disk, processes, mounts, host name, boot id and cgroup; the machine's network.
#
#   boot.sh enter CGROUP PIDS DISK NAME SSHD    moves into the cgroup and into new namespaces
#   boot.sh init DISK NAME SSHD                 is process 1 in there, and becomes sshd
#
# PIDS is the cgroup in the version 1 tree that counts processes, or nothing.
#
# Every mount is made inside the host's own mount namespace, so the kernel removes them all with its last process.
set -eu

enter() {
  echo $$ >"$1/cgroup.procs"
  [ -z "$2" ] || echo $$ >"$2/cgroup.procs"
  shift 2
  exec unshare --cgroup --pid --mount --uts --ipc --fork --kill-child sh "$0" init "$@"
}

init() {
  disk=$1 name=$2 sshd=$3
  mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" overlay "$disk/root" || {
    echo "cannot mount an overlay with its upper layer in $disk: is that itself on an overlay? Set DORMOUSE_BED to a folder on a plain file system"
    exit 1
  }
  cd "$disk/root"
  fresh_folders
  kernel_mounts
  devices
  cat proc/sys/kernel/random/uuid >run/boot_id
  mount --bind run/boot_id proc/sys/kernel/random/boot_id
  echo "$name" >proc/sys/kernel/hostname
  own_cgroup

  mkdir run/machine
  pivot_root . run/machine
  cd /
  umount -l /run/machine
  rmdir /run/machine
  exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$sshd" -D -f /etc/ssh/bed_sshd_config -E /var/log/sshd.log </dev/null >/dev/null 2>&1
}

# What the machine has under these names is hidden by the disk; they are kept from boot to boot.
fresh_folders() {
  mkdir -p home mnt media srv tmp run proc sys dev var/cache var/lib var/log var/spool
  mkdir -p -m 1777 var/tmp
  mkdir -p -m 700 root
  [ -e var/run ] || ln -s /run var/run
  [ -e home/ci ] || { mkdir -m 755 home/ci && chown 2000:2000 home/ci; }
}

kernel_mounts() {
  mount -t proc -o nosuid,nodev,noexec proc proc
  mount -t sysfs -o nosuid,nodev,noexec sysfs sys
  mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
  mkdir -m 755 run/sshd
  mkdir -m 1777 run/lock
}

devices() {
  mount -t tmpfs -o mode=755,nosuid tmpfs dev
  for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"
  done
  mknod -m 666 dev/tty c 5 0
  mkdir dev/pts dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  for stream in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${stream%:*}" "dev/${stream#*:}"; done
}

# The namespace's root stays without processes of the host, so that a service on it may hand controllers to children.
own_cgroup() {
  mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
  mkdir -p sys/fs/cgroup/system.slice/ssh.service
  echo 0 >sys/fs/cgroup/system.slice/ssh.service/cgroup.procs
  mkdir run/pids
  mount -t cgroup -o nosuid,nodev,noexec,pids cgroup run/pids 2>/dev/null || rmdir run/pids
}

"$@"
