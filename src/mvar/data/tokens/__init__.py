"""Token maps as training data: cached, or encoded when they are asked for."""
