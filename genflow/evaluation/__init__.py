"""Measure the quality, variety, likelihood and speed of a run, each with its uncertainty.

    evaluate         measures one run and writes one document
    results          the types of that document
    features/        pictures -> vectors, by a small classifier trained once per dataset, or by another network
    metrics/         one metric per file; the folder is the registry
    metric_suite     computes metrics of features, and their floors from real data
    interval         95 % intervals: half-sampling, means, proportions
    samples          draws samples, in this process or on workers, and converts them to features
    sweep            quality against the number of steps, for one checkpoint
    sample_grids     pictures of samples, sampling paths and interpolations
    prompt_pictures  samples of held-out captions, with the pictures to compare them with
    steps_needed     how many steps are enough
    selection        which run, sampler and number of steps to deploy
    report/          the table and the HTML report of a comparison
"""
