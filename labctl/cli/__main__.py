"""`python -m labctl.cli`: the same as the program `labctl`."""

from labctl.cli.main import main

main()
