"""Image sets that one command fetches."""
