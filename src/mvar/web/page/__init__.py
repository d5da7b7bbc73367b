"""The page of `mvar serve`: a tab for each way to play with a model."""
