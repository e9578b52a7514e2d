"""The programs that Ray runs, and the only place that knows a cluster: `python -m jobs.<stage> recipe.yaml`."""
