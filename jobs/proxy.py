"""The import path that Serve files written before genflow 0.2 name."""

from jobs.runtime.serve.retry_middleware import middlewares as middlewares
