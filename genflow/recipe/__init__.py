"""The recipe: the schema of a run's settings, the composition of layers of settings, and YAML files."""
