"""What a number means: the registry's metrics, the protocol, pinned weights, and the one pass that scores. May import
`results`, `machine` and the nouns of the top level.
"""
