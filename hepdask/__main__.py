"""``python -m hepdask``: the command line."""

from hepdask.cli import main

main()
