"""Comparisons with other libraries, in pairs, one comparison a file; `make bench` writes docs/benchmarks.md.

    pairs     contestants take turns in one process, and their CPU seconds are compared round by round
    steps     genflow's training loop as a contestant that makes a few steps at a time
    peers     the training loops of other libraries, with their best flags
    step      a training step of the same network, and of genflow's own nets
    sampling  pictures by the engine and by diffusers' pipeline on the same weights
    data      reading of batches by genflow's shards and by other loaders
    overhead  the job of a training and a bare loop, the help, and the parts of a start
    memory    peak memory of a training and of a bare loop
    evaluation  metrics of the same features
    bare      the bare loop
    prepared  a dataset of made-up pictures
    page      what was measured as a page

`make bench-quality` compares the CPU time of trainings up to a stated quality, and writes its section of that page.

    quality       the trainings, and the distance of their samples
    examples      the training examples of other libraries, as published
    tuned         their loops with what genflow has
    quality_page  the section
"""
