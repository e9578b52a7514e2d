"""Train on two raylets and a driver that have separate cache folders.

    python apart.py recipe.json CACHES

They share only the bucket that the environment variables name.
"""

import json
import os
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

from genflow.tracking import database, sender
from jobs import train

recipe, caches = sys.argv[1:]
little: dict[str, Any] = {"object_store_memory": 80_000_000}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **little})
for name in ("one", "two"):
    nodes.add_node(num_cpus=1, env_vars={"GENFLOW_CACHE": f"{caches}/{name}"}, **little)
os.environ["GENFLOW_CACHE"] = f"{caches}/driver"
ray.init(address=nodes.address, log_to_driver=False)
database.prepare = lambda store: ""
sender.Sender.start = lambda self: None
sender.Sender.finish = lambda self, deadline_s: True
with open(recipe, encoding="utf-8") as file:
    done = train.main(json.load(file), lambda event, **fields: None)
print(json.dumps(done))
ray.shutdown()
nodes.shutdown()
