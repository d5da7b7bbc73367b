"""Studies that re-run the tables of the M-VAR paper at small scale."""
