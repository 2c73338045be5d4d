"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

# No time limit for an example: on a busy machine one may take longer than hypothesis' 200 ms.
settings.register_profile("labctl", deadline=None)
settings.load_profile("labctl")
