"""`python -m vqbench` is the command `vqbench`."""

from vqbench.cli.app import main

main()
