"""What a method must hold to, and what this machine gives: behind `vqbench check` and `vqbench doctor`. May import
`metrics`, `machine` and the nouns of the top level.
"""
