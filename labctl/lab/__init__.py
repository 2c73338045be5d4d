"""The whole: plan, up, down, status and everything people do with a lab that is up.

`labctl.lab.api` has the verbs as functions, `labctl.lab.model` what they take and give back.
"""
