"""The recipe: the schema of one run's settings, how layers of settings compose, and its YAML files."""
