"""`python -m cjepa`: the same as the `cjepa` command."""

from cjepa.cli import main

main()
