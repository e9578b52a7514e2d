"""`python -m genflow.cli` is the program `genflow`."""

from genflow.cli.app import main

if __name__ == "__main__":
    main()
