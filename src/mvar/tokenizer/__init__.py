"""The multi-scale VQ-VAE: images to token maps and back."""
