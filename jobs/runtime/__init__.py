"""The code that the stage programs share, most of it for Ray.

    entrypoint    read the document, emit events, exit with the right code
    cluster       find a Ray cluster or start one on this machine
    shard_stage   find an artifact of shards, or lock, write and finalize it
    shard_actors  actors that write the missing shards
    gpus          how many GPUs a worker requests, and which device it may use
    resources     nodes, CPUs and GPUs of the cluster
    train/        Ray Train: the worker group, one worker, the stop signal, Prometheus gauges
    tune/         Ray Tune: trainable, searchers, ASHA, population-based training
    serve/        Ray Serve: the deployment, HAProxy and the middleware in front of it
"""
