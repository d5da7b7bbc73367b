"""Measurements of tokenizers, generators and images."""
