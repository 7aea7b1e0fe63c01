"""Datasets: where images come from, which are for training, which for validation."""
