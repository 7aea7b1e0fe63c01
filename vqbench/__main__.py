"""`python -m vqbench` is the command `vqbench`."""

from vqbench.cli import main

main()
