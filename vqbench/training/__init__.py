"""The algorithm that all methods are trained with: losses, steps, checkpoints, collapse. May import `data`, `results`,
`machine` and the nouns of the top level.
"""
