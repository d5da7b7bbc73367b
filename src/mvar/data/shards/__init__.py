"""Webdataset shards: where they lie, their members, and their labels."""
