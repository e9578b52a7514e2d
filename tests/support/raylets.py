"""Run a cluster of two raylets on this machine until standard input is closed.

    python raylets.py FOLDER DASHBOARD_PORT AGENT_PORT

Every socket is on the loopback, where `ray start --address` would reject a second node. Each node has its own folder:
otherwise the second node would unpack a job's bundle over the first node's copy.
"""

import sys
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster

Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # the cluster writes its address there, too
folder, dashboard_port, agent_port = sys.argv[1:]
memory = {"object_store_memory": 80_000_000}
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 1,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": int(dashboard_port),
        "dashboard_agent_listen_port": int(agent_port),
        "temp_dir": f"{folder}/a",
        **memory,
    },
)
# as `ray start` does; otherwise a job may connect to another Ray of this machine
write_ray_address(cluster.gcs_address, f"{folder}/a")
cluster.add_node(num_cpus=1, include_log_monitor=True, temp_dir=f"{folder}/b", **memory)
print("ready", flush=True)
sys.stdin.read()
cluster.shutdown()
