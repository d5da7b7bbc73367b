"""The training loop, and what is trained by it."""
