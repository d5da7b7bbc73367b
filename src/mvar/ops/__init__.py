"""Pure functions on tensors; each fast one has a naive sibling."""
