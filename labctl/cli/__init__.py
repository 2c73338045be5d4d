"""The command line: parses, calls one function of labctl.lab, draws the answer.

Nothing heavy is imported before a verb runs, so that `labctl --help` and completion are quick.
"""
