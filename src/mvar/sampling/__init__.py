"""The scale loop, and what becomes of its images."""
