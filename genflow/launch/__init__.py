"""Run a job on this machine or on a Ray cluster; both produce the same events.

local            a job in a child process on this machine
remote           a job on a cluster, through the Ray Jobs API
child_process    signals, output and environment of a child process
bundle           the files that are uploaded to the cluster
local_checks     checks of this machine
preflight        checks of a cluster before a job is sent
capacity         whether the nodes have resources for the workers
ray_jobs         Ray's job client
ray_dashboard    requests to the Ray dashboard
cluster_config   reading and checking cluster.yaml and KubeRay manifests
"""
