"""Layers of the generator."""
