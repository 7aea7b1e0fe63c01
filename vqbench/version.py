"""The version, said once: in the package's metadata, in every result, by `vqbench --version`."""

__version__ = "0.4.0"
