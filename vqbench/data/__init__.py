"""Datasets: where images come from, which are held out, and the decoded cache. Importing it brings no torch."""
