"""The judge: how good, how varied, how likely and how fast the samples of a run are, each with its uncertainty.

    features    pictures -> vectors, by a small network trained once per dataset
    frechet     distance between two Gaussians in feature space          how good
    kernel      unbiased maximum mean discrepancy                        how good, at small N
    coverage    precision, recall, density, coverage                     how varied
    modes       modes of a known density in the plane that were found    how varied
    stacked     modes of stacked pictures that were found                how varied
    shown       the share of each class                                  how varied
    bits        log-likelihood as bits a dimension                       how likely
    interval    what another N samples would have given
    samples     drawn in shares, here or on workers, and reduced to features
    imagenet    an optional ImageNet network as features, from a package extra
    measure     all of it for one run, as one document
    table, report, charts, losses, pictures                              what people look at
"""
