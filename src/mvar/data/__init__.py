"""Images for training: folders, their order, and sets that can be fetched."""
