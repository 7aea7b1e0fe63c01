"""Datasets: where images come from, which are held out, and the decoded cache. Importing it brings no torch."""

from vqbench.data.dataset import Dataset, Images, open_dataset
from vqbench.data.prepare import PreparedImages, prepare_train, prepare_validation

__all__ = ["Dataset", "Images", "PreparedImages", "open_dataset", "prepare_train", "prepare_validation"]
