"""How good, how varied, how likely and how fast the samples of a run are, each with its uncertainty.

    features/       pictures -> vectors, by a small network trained once per dataset, or by another network
    metrics/        one metric a file, and the folder is the registry
    metric_suite    metrics of features, with the same of real rows as their floors
    interval        what another N samples would have given
    samples         drawn in shares, here or on workers, and reduced to features
    sweep           quality against the number of steps
    evaluate        all of it for one run, as one document
    sample_grids    what a run draws, to look at
    steps_needed, selection     how many steps are enough; which run, sampler and steps to deploy
    report/         the table of a comparison, and its page
"""
