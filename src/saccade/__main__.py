"""``python -m saccade``: the command line."""

from saccade.cli.app import main

main()
