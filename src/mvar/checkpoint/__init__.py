"""Files of models: our bundles, and the official code's checkpoints."""
