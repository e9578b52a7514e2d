"""The old import path of `build`, for Serve configuration files written before genflow 0.2."""

from jobs.runtime.serve.deployment import build as build
