"""The cells of a command on an engine; run, ablate, report, and probes of what a run costs. May import `tracking` and
what that may.
"""
