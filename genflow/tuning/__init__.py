"""Search for better settings: the search space, the trials, and the analysis of their results. Knows no Ray.

    search      a search as a value: its content address, its folder, its task
    space       the keys of the recipe to search over and their values, checked before anything starts
    metrics     the metrics of a trial, and whether smaller or larger is better
    trial       one set of settings, trained and measured in stages that survive a kill
    objective   a function in place of training
    reports     the types of a trial's results
    trial_log   the trials of a search, appended to one file
    warm_start  start a longer search with the trials of a shorter one
    pbt         population-based training: exploits, and the settings of each member
    pbt_check   whether weights fit a population's changing settings
    tracking    a search's journals, for MLflow
    analysis    the best trial, the Pareto front, the importance of each key, the confirmation
    results     the result documents: search.json, best.yaml, trials.csv
"""
