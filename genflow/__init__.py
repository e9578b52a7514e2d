"""genflow: train, compare, sample and serve families of image generators on your own images.

`genflow/` is the library, `jobs/` are the programs that Ray runs, and `pipelines/` are recipes. Only one function of
`genflow.launch.ray_jobs` imports Ray; see docs/architecture.md.
"""

__version__ = "0.1.0"
