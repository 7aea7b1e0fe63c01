"""The command line and the terminal: options become a request, rows become tables. May import everything."""
