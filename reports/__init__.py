"""Statistics, tables and figures, from stored results alone."""
