"""Images and frozen features: where they come from, which are held out, the decoded cache, their order. May import
`metrics`, `machine` and the nouns of the top level.
"""
