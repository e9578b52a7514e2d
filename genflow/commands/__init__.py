"""The commands without a command line: what a command asks of a job, for `cli/` and for the Python API alike.

recipes      from flags, keys and files to a recipe
references   from what a user types to artifacts of the store
prepare, train, tune, measure   one command each: its recipe, and the document of its job
texts        the text embeddings that a recipe names
prompting    prompts of a command
vocabulary   the words that other tools use for settings
listing      the runs of a store as rows
store_page   the page of a store
keys         every key of a recipe with its meaning, default and range
"""
