"""The import path that Serve files written before genflow 0.2 name."""

from jobs.runtime.serve.deployment import build as build
