"""What a lab is: loading a YAML profile, checking it, and describing the format.

Importing this package costs nothing; pydantic and PyYAML are imported with the first name used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labctl.profile.checks import Verdict as Verdict
    from labctl.profile.checks import judge as judge
    from labctl.profile.loader import load as load
    from labctl.profile.loader import load_text as load_text
    from labctl.profile.models import Attachment as Attachment
    from labctl.profile.models import Capabilities as Capabilities
    from labctl.profile.models import Check as Check
    from labctl.profile.models import Expect as Expect
    from labctl.profile.models import File as File
    from labctl.profile.models import Mount as Mount
    from labctl.profile.models import Network as Network
    from labctl.profile.models import Node as Node
    from labctl.profile.models import Port as Port
    from labctl.profile.models import Profile as Profile
    from labctl.profile.models import Ready as Ready
    from labctl.profile.models import Route as Route
    from labctl.profile.models import Secret as Secret
    from labctl.profile.models import SecretUse as SecretUse
    from labctl.profile.models import Step as Step
    from labctl.profile.models import Tmpfs as Tmpfs
    from labctl.profile.models import Volume as Volume
    from labctl.profile.models_vm import Disk as Disk
    from labctl.profile.schema import json_schema as json_schema
    from labctl.profile.starting import starter as starter
    from labctl.profile.types import Condition as Condition
    from labctl.profile.types import Devices as Devices
    from labctl.profile.types import MountKind as MountKind
    from labctl.profile.types import Protocol as Protocol
    from labctl.profile.types import Tier as Tier

_HOMES = {
    "checks": "Verdict judge",
    "loader": "load load_text",
    "models": "Attachment Capabilities Check Disk Expect File Mount Network Node Port Profile Ready Route "
    "Secret SecretUse Step Tmpfs Volume",
    "schema": "json_schema",
    "starting": "starter",
    "types": "Condition Devices MountKind Protocol Tier",
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'labctl.profile' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"labctl.profile.{_WHERE[name]}"), name)
