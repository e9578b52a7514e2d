"""Launch: run a job on this machine or on a Ray cluster; both return the same events.

local            a job in a child process of this machine
remote           a job on a cluster, through the Ray Jobs API
child_process    signals and output of a child process
bundle           the files that travel to the cluster
preflight        what is checked before a job is sent
capacity         whether the cluster can hold the workers
ray_jobs         Ray's job client
ray_dashboard    requests to the Ray dashboard
cluster_config   cluster.yaml and KubeRay manifests: reading and checking
"""
