"""Resources: things that can be made, looked at and unmade; the ledger that names them; the one executor.

Knows no lab and no tier.  Intent is on disk before an object exists, so whatever a kill leaves
behind, `destroy` finds it.
"""
