"""The mathematics: paths, times, samplers, seeds, averages and likelihoods. Knows no net and no data."""
