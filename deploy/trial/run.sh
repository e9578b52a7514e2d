#!/usr/bin/env bash
# make trial: start deploy/onprem.yaml with `ray up` over ssh, on three hosts that are namespaces of this machine. Train on two
# of them, kill one in the middle, and compare the bits with an undisturbed run. Needs root, Linux, sshd and rsync (or
# apt-get, to unpack them into the trial's own folder), takes about five minutes, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "error: a trial makes network namespaces: run it as root" >&2; exit 3; }
for tool in ip unshare ssh ssh-keygen; do
    command -v "$tool" >/dev/null || { echo "error: there is no $tool: apt-get install iproute2 util-linux openssh-client" >&2; exit 3; }
done
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")  # of the environment that every host uses
folder=$(mktemp -d /var/tmp/genflow-trial.XXXXXX)
trap 'rm -rf "$folder"' EXIT

# If sshd or rsync is missing, unpack the packages without installing them, so that no service starts.
mkdir "$folder/tools"
if ! command -v rsync >/dev/null || ! [ -x /usr/sbin/sshd ]; then
    (cd "$folder/tools" && chmod 777 . && apt-get -qq download openssh-server rsync libwrap0 &&
     for package in *.deb; do dpkg -x "$package" .; done) >&2
fi

# The first process of each host's namespaces is a child of this one, so all processes of all hosts end with it.
unshare --mount --net --pid --uts --ipc --fork --kill-child --mount-proc \
    env PYTHON="$PYTHON" TRIAL="$folder" bash deploy/trial/inside.sh
