"""`python -m labctl.cli`: the same as the program `labctl`."""

from labctl.cli.entry import main

main()
