"""Features: pictures as vectors, between which distances are measured.

    extractor       selects, trains and caches the feature extractor of a dataset
    classifier      the small classifier that is trained on the dataset
    multiscale      the default features: what a picture shows, and its texture, from the classifier's layers
    caption_judge   the judge of captions, pictures -> text embeddings, which is trained on the dataset
    caption_pool    the captions of a dataset, and which of them are wrong answers for a picture
    imagenet        an optional ImageNet network, from a Python package
"""

ASKED = 500  # rows whose captions are asked for, at most; here, because metrics are declared without torch
