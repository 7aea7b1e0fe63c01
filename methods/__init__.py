"""Vector quantizers, one method per file. May import `quantizer`, `registry` and each other's parts, and nothing of the
harness.
"""
