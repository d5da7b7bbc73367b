"""`python -m mvar` is the `mvar` command."""

from mvar.cli import main

main()
