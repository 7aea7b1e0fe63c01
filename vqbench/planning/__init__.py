"""From a request to its cells, and what they need and cost. May import `cell` and what that may."""
