"""Search spaces and the Optuna driver over the same plan and runner."""
