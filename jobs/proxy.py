"""The old import path of `middlewares`, for Serve configuration files written before genflow 0.2."""

from jobs.runtime.serve.retry_middleware import middlewares as middlewares
