"""Image files and the folders that they lie in."""
