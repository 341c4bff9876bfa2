#!/bin/sh
# First process of a node's own pid and mount namespaces: containerd, then the kubelet, until either ends.
#
#   boot.sh FOLDER KUBELET [FLAGS OF THE KUBELET...]
#
# What both of them write outside FOLDER is gone with the namespaces. FOLDER itself is the machine's, so that the socket
# and the logs in it can be reached from outside.
set -eu

folder=$1
kubelet=$2
shift 2

# Sockets of shims, the state of runc, the kubelet's own folder, logs of pods.
for place in /run /var/lib /var/log; do mount -t tmpfs none "$place"; done

# The kubelet sets these for the whole machine. Here it sets files that nobody reads.
mkdir -p /run/sysctl
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
  kernel/keys/root_maxbytes; do
  copy=/run/sysctl/$(basename "$setting")
  cat "/proc/sys/$setting" >"$copy"
  mount --bind "$copy" "/proc/sys/$setting"
done

containerd --config "$folder/containerd.toml" >>"$folder/containerd.log" 2>&1 &
containerd=$!
until [ -S "$folder/containerd.sock" ]; do
  kill -0 "$containerd" || { echo "containerd ended:"; tail -n 20 "$folder/containerd.log"; exit 1; }
  sleep 0.05
done
# When it ends so does this script, and with it everything in its namespaces.
"$kubelet" "$@" >>"$folder/kubelet.log" 2>&1 || { echo "the kubelet ended:"; tail -n 20 "$folder/kubelet.log"; exit 1; }
