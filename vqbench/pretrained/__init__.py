"""Tokenizers that are trained already: files of others, adapters, folders of reconstructions, our own cells. Imports
what a tokenizer is made of, metrics, and how images are read.
"""
