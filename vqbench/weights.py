"""The name by which `vqbench.metrics.weights` was known before there were rooms: stored plugins say it."""

from vqbench.metrics.weights import add_pin

__all__ = ["add_pin"]
