"""What a training costs before it runs: arithmetic, memory, and time on GPUs from a roofline.

    step        one step on tensors without data: every operation, its arithmetic, its bytes, and the memory in use
    gpus        the published limits of GPUs
    estimate    images per second and hours on a GPU, the memory of a worker, and what was assumed
"""
