"""Studies of what settings do, on a user's own model and images."""
