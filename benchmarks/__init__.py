"""What runs from a source tree to check a machine; not in the wheel."""
