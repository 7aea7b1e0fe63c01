"""`python -m vqbench.cli` is the command `vqbench`."""

from vqbench.cli.app import main

if __name__ == "__main__":
    main()
