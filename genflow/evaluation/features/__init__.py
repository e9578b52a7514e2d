"""Features: pictures as vectors, in which distances are measured.

    extractor     choose, train once and cache the feature network of a dataset
    classifier    a small classifier trained on the dataset
    imagenet      an ImageNet network from a package extra
"""
