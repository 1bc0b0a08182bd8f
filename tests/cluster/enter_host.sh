#!/usr/bin/env bash
# Furnishes new network, mount and host name namespaces as a host of the test cluster, says "ready" and
# stays; the namespaces live as long as it does. Called by cluster.py: enter_host.sh NAME FOLDER
set -euo pipefail
name="$1"
folder="$2"

hostname "$name"

# /sys with this host's own network interfaces. The machine's control groups are put back: slurmd needs them.
if [[ -d /sys/fs/cgroup ]]; then
  mount --rbind /sys/fs/cgroup "$folder/$name/cgroup"
  mount -t sysfs sysfs /sys
  mount --rbind "$folder/$name/cgroup" /sys/fs/cgroup
  umount -l "$folder/$name/cgroup"
fi

# What hosts do not share, although everything else on the disk is the same.
mount -t tmpfs tmpfs /dev/shm -o mode=1777
mount -t tmpfs tmpfs /run -o mode=755
mkdir -m 1777 /run/lock
mkdir /run/sshd /run/munge

# The cluster's settings stand where programs look for them, so that no command needs to be told.
mount --bind "$folder/munge" /run/munge
mount --bind "$folder/slurm" /etc/slurm
mount --bind "$folder/etc/hosts" /etc/hosts
mount --bind "$folder/etc/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$folder/etc/ssh_config" /etc/ssh/ssh_config

echo ready
exec -a "cluster host $name" sleep infinity
