"""Tiers: each turns a node of the profile into resources, and hands out the machine for it.

A tier has or hasn't an ability (console, pause, snapshot); it has no method that says
"not supported".  See docs/adding-a-tier.md.
"""
