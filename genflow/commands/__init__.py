"""The commands without a command line: what a command asks of a job, for `cli/` and for the Python API alike.

recipes      from flags, keys and files to a recipe
references   from what a user types to artifacts of the store
"""
