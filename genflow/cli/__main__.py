"""`python -m genflow.cli` runs the program `genflow`."""

from genflow.cli.app import main

if __name__ == "__main__":
    main()
