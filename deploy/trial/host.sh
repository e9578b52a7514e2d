# One host: its own network, processes, name, /tmp, /run, /dev/shm and home; everything else is that of this machine.
# inside.sh runs it in new namespaces as their first process, so it adopts every process that Ray leaves behind.
set -euo pipefail
name=$1
hostname "$name"
mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp
mount -t tmpfs -o size=8g tmpfs /dev/shm && chmod 1777 /dev/shm
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount --bind "$TRIAL/$name" /home/trial
export HOME=/home/trial
cd
"$SSHD" -D -e -f "$TRIAL/sshd_config" -h "$TRIAL/host_key" 2>"$TRIAL/$name.log" &
wait
