"""The name by which `vqbench.tracking.fetch` was known before there were rooms."""

from vqbench.tracking.fetch import fetch_experiment

__all__ = ["fetch_experiment"]
