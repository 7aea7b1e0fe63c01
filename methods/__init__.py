"""Vector quantizers, one method per file."""
