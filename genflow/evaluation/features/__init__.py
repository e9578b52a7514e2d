"""Features: pictures as vectors, between which distances are measured.

    extractor     selects, trains and caches the feature extractor of a dataset
    classifier    the small classifier that is trained on the dataset
    imagenet      an optional ImageNet network, from a Python package
"""
