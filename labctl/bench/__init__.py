"""The comparison: the same measurements in every node of a lab and on the bare host, with their spread.

`labctl.bench.run.bench` measures and keeps every sample, `labctl.bench.results` makes tables of them,
`labctl.bench.report` writes the report, `labctl.bench.regression` compares two runs.  NumPy, SciPy and
matplotlib are the extra `labctl[bench]`; `labctl.bench.extra.need` says so where they are missing.
"""
