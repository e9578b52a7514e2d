# The trial, in its own namespaces. Run by run.sh.
set -euo pipefail
checkout=$PWD
venv=$(dirname "$(dirname "$PYTHON")")
export LD_LIBRARY_PATH=$TRIAL/tools/usr/lib/$(uname -m)-linux-gnu PATH=$TRIAL/tools/usr/bin:$PATH
SSHD=$TRIAL/tools/usr/sbin/sshd; [ -x "$SSHD" ] || SSHD=/usr/sbin/sshd
export SSHD

# A laptop (this shell) and three hosts on one bridge, with one folder that all of them see.
mount --make-rprivate /
mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp
mount -t tmpfs tmpfs /srv && mkdir /srv/genflow "$TRIAL/store" && mount --bind "$TRIAL/store" /srv/genflow
mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
ip link set lo up
ip link add trial0 type bridge && ip addr add 10.77.0.254/24 dev trial0 && ip link set trial0 up
sed 's#^root:.*#root:x:0:0:root:/home/trial:/bin/bash#' /etc/passwd >"$TRIAL/passwd"  # ssh finds ~ in this file, not in HOME
grep -q ^sshd: "$TRIAL/passwd" || echo "sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin" >>"$TRIAL/passwd"
mount --bind "$TRIAL/passwd" /etc/passwd
ssh-keygen -q -t ed25519 -N "" -f "$TRIAL/host_key"
printf '%s\n' "ListenAddress 0.0.0.0" "PidFile none" "UsePAM no" "StrictModes no" "PasswordAuthentication no" \
    "PermitRootLogin prohibit-password" "SetEnv PATH=$PATH LD_LIBRARY_PATH=$LD_LIBRARY_PATH" >"$TRIAL/sshd_config"
mount -t tmpfs tmpfs /home && mkdir /home/trial "$TRIAL/laptop" && mount --bind "$TRIAL/laptop" /home/trial
export HOME=/home/trial
mkdir -p "$HOME/.ssh" && ssh-keygen -q -t ed25519 -N "" -f "$HOME/.ssh/id_ed25519"

declare -A first
number=0
for name in head alpha beta; do
    number=$((number + 1))
    mkdir -p "$TRIAL/$name/.ssh" "$TRIAL/$name/venv"
    cp "$HOME/.ssh/id_ed25519.pub" "$TRIAL/$name/.ssh/authorized_keys"
    # for login shells, with rsync
    echo "export PATH=$PATH LD_LIBRARY_PATH=$LD_LIBRARY_PATH RAY_worker_niceness=0" >"$TRIAL/$name/.bash_profile"
    touch "$TRIAL/$name/.bashrc"
    ln -s "$venv"/{bin,lib,pyvenv.cfg} "$TRIAL/$name/venv/"  # in place of setup_commands
    cp "$checkout/constraints.txt" "$TRIAL/$name/venv/"
    ip netns add "$name"
    ip link add "$name" type veth peer name eth0 netns "$name"
    ip link set "$name" master trial0 up
    ip netns exec "$name" ip link set lo up
    ip netns exec "$name" ip addr add "10.77.0.$number/24" dev eth0
    ip netns exec "$name" ip link set eth0 up
    ip netns exec "$name" ip route add default via 10.77.0.254  # Ray takes the host's own address from its default route
    ip netns exec "$name" unshare --mount --pid --uts --ipc --fork --kill-child --mount-proc \
        bash "$checkout/deploy/trial/host.sh" "$name" </dev/null &
    first[$name]=$!
done

say() { echo "=== $(date +%T) $*"; }
genflow() { (cd "$checkout" && PYTHONPATH=$checkout "$PYTHON" -m genflow.cli "$@"); }
until_true() {  # SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "error: $what: not reached in time" >&2; tail -n 5 "$TRIAL"/*.log >&2; exit 1; }
        sleep 0.5
    done
}
answers() { ssh -o StrictHostKeyChecking=no -o ConnectTimeout=2 -i "$HOME/.ssh/id_ed25519" "root@10.77.0.$1" true 2>/dev/null; }
has_nodes() { [ "$(genflow cluster status --address 127.0.0.1:8265 --json 2>/dev/null | grep -c '"resources"')" = "$1" ]; }
weights() { sha256sum "$1/checkpoints/$(ls "$1/checkpoints" | sort | tail -n 1)/"*.safetensors | cut -c 1-64 | sha256sum | cut -c 1-16; }

export GENFLOW_STORE=/srv/genflow OMP_NUM_THREADS=1
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH MLFLOW_TRACKING_URI
for number in 1 2 3; do until_true 20 "host $number's sshd" answers $number; done
say "three hosts answer by ssh"
sed -e 's/head_ip: .*/head_ip: 10.77.0.1/' -e 's/worker_ips: .*/worker_ips: [10.77.0.2, 10.77.0.3]/' \
    -e 's/ssh_user: .*/ssh_user: root/' "$checkout/deploy/onprem.yaml" >"$TRIAL/onprem.yaml"

say "genflow doctor, which makes the token; genflow cluster validate"
genflow doctor || true
genflow cluster validate "$TRIAL/onprem.yaml"
say "genflow cluster up"
up() { genflow cluster up "$TRIAL/onprem.yaml" --yes >"$TRIAL/up.log" 2>&1; }
up || up || { tail -n 40 "$TRIAL/up.log"; exit 1; }  # Ray waits 30 s for a head to start, which is too short on a busy machine
say "genflow cluster dashboard"
genflow cluster dashboard "$TRIAL/onprem.yaml" &
tunnel=$!
until_true 120 "the tunnel" bash -c 'exec 3<>/dev/tcp/127.0.0.1/8265' 2>/dev/null
until_true 300 "three nodes" has_nodes 3
genflow cluster status --address 127.0.0.1:8265
say "ports on the head; the dashboard must not be reachable from the laptop"
ip netns exec head ss -Hltn | awk '{print $4}' | sort | uniq | tr '\n' ' '; echo
(exec 3<>/dev/tcp/10.77.0.1/8265) 2>/dev/null && { echo "error: the dashboard is open to the network" >&2; exit 1; }
genflow doctor --cluster

say "genflow prepare digits --cluster"
genflow prepare digits --cluster
say "the command names a host that does not see the store before it uploads anything"
rm -rf /srv/genflow/probes
nsenter -t "${first[beta]}" -m umount /srv/genflow
code=0
genflow train flow_matching --data digits --workers 2 --cluster --name unseen || code=$?
nsenter -t "${first[beta]}" -m mount --bind "$TRIAL/store" /srv/genflow
[ $code = 3 ] || { echo "error: it ended with $code" >&2; exit 1; }
train() {
    genflow train flow_matching --data digits --workers 2 --cluster --name "$1" --set net.kind=mlp --set net.width=64 \
        --set net.depth=2 --set train.steps="${STEPS:-600}" --set train.checkpoint_every=100 --set train.log_every=50
}
say "genflow train --workers 2 --cluster, undisturbed"
train whole
say "the same, and the host beta loses its network and dies after the first checkpoint"
train broken &
command=$!
until_true 300 "a checkpoint" bash -c 'ls /srv/genflow/runs/broken-*/checkpoints/step_* >/dev/null 2>&1'
ip link set beta down && kill -9 "${first[beta]}"
say "beta is dead"
wait $command
say "nodes now"
genflow cluster status --address 127.0.0.1:8265
whole=$(weights /srv/genflow/runs/whole-*) broken=$(weights /srv/genflow/runs/broken-*)
say "weights: undisturbed $whole, with a death $broken"
[ "$whole" = "$broken" ] || { echo "error: the weights differ" >&2; exit 1; }
say "genflow cluster down"
kill $tunnel
genflow cluster down "$TRIAL/onprem.yaml" --yes >"$TRIAL/down.log" 2>&1 || tail -n 3 "$TRIAL/down.log"
say "passed"
