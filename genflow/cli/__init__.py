"""The command line. `app` registers the commands; each command is in the module of its name."""
