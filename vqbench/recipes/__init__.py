"""Named recipes: everything about training that is held equal, as YAML. Imports nothing."""
