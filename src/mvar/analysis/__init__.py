"""What a model does with an image: measures of its real forward pass."""
