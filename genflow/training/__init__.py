"""Training: one loop for every family, on one device or many. Knows no Ray and no MLflow.

    loop         fit(): draw a batch, step each player, average the weights, save, stop on a signal
    session      what the loop needs from its surroundings: rank, saving, logging, the stop flag
    optim        Muon for matrices, AdamW for the rest
    muon         the Muon optimizer
    ema          the averaged weights
    precision    whether a device multiplies bfloat16 fast
    all_reduce   gradients of all workers in flat buckets
    micro_batches  the rows of a batch one part after another, and their draws
    activations  layers that are computed again in the backward pass, to save memory
    workers      what several workers agree on; an error of one ends all
    resume       the checkpoint from which all workers resume
    fsdp         each worker holds a shard of the weights
    sharded_checkpoint  every worker writes its own shards, while training continues
    checkpoint   safetensors and JSON on disk; the newest complete one is resumed
"""
