"""Search spaces and the Optuna driver: trials are cells of the same plan and engines as those of `run`. May import
`running` and what that may.
"""
