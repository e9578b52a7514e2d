"""The command line: `app` registers the commands, and each command is in the module of the same name."""
