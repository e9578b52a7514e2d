"""genflow: train, compare, sample and serve families of image generators on your own images.

`genflow/` says what, `jobs/` says where, `pipelines/` says which. Nothing in this package imports Ray,
save one function of `submit`; see docs/architecture.md.
"""

__version__ = "0.1.0"
