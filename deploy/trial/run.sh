#!/usr/bin/env bash
# make trial: deploy/onprem.yaml brought up by `ray up` over ssh, on three hosts that are namespaces of this machine;
# a run on two of them, one of which dies in the middle; and the same bits as without. Needs root and Linux, sshd and
# rsync (or apt-get, to unpack them into the trial's own folder), takes about five minutes, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "error: a trial makes network namespaces: run it as root" >&2; exit 3; }
for tool in ip unshare ssh ssh-keygen; do
    command -v "$tool" >/dev/null || { echo "error: there is no $tool: apt-get install iproute2 util-linux openssh-client" >&2; exit 3; }
done
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")  # of the environment that every host is to have
folder=$(mktemp -d /var/tmp/genflow-trial.XXXXXX)
trap 'rm -rf "$folder"' EXIT

# sshd and rsync, where this machine lacks them: unpacked, not installed, so that nothing starts
mkdir "$folder/tools"
if ! command -v rsync >/dev/null || ! [ -x /usr/sbin/sshd ]; then
    (cd "$folder/tools" && chmod 777 . && apt-get -qq download openssh-server rsync libwrap0 &&
     for package in *.deb; do dpkg -x "$package" .; done) >&2
fi

# every process of every host dies with this one: their namespaces' first process is its child
unshare --mount --net --pid --uts --ipc --fork --kill-child --mount-proc \
    env PYTHON="$PYTHON" TRIAL="$folder" bash deploy/trial/inside.sh
