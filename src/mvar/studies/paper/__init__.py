"""The studies of M-VAR's paper, and what it leaves open: one short file each."""
