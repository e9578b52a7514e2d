"""Sampling: trained runs at work.

    engine           a run's averaged weights, and samples that depend on their own seed alone
    interpolation    walks between two pictures or two seeds
    reflow           pairs of noise and samples that a teacher draws
    export           safetensors, diffusers and torch.export folders
"""
