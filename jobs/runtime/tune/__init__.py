"""Run a search's trials on Ray Tune.

    trainable    a trial as a Ray Tune trainable
    searchers    TPE, random and grid search that survive a kill
    asha         early stopping by successive halving
    pbt          population-based training
"""
