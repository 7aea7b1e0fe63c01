"""Statistics, tables, figures and pages, from stored results alone. May import `metrics`, `results`, `machine` and the
nouns of the top level.
"""
