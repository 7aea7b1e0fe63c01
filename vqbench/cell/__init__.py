"""One cell: its process from outside, and what happens in it by track. May import `training`, `data`, `metrics`,
`results`, `machine` and the nouns of the top level.
"""
