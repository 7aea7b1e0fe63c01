"""The runs directory, which is the truth: a cell's folder, the one table of its files, its curves. May import
`machine` and the nouns below it.
"""
