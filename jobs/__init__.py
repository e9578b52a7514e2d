"""The programs that run on Ray: `python -m jobs.<stage> recipe.yaml`. Only this package uses a cluster."""
