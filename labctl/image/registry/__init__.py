"""Images from and to registries (OCI distribution-spec 1.1, Docker Registry HTTP API V2)."""

from __future__ import annotations

from labctl.image.refs import remote
from labctl.image.registry.client import Client, RegistryError
from labctl.image.registry.pull import pull, pull_all
from labctl.image.registry.push import push

__all__ = ["Client", "RegistryError", "delete", "pull", "pull_all", "push", "tags"]


def tags(ref: str, *, insecure: bool = False, ca: str = "") -> list[str]:
    """The tags of a repository, in order.  Raises RegistryError, UsageError."""
    name = remote(ref)
    return Client(name.registry, insecure=insecure, ca=ca).tags(name.repository)


def delete(ref: str, *, insecure: bool = False, ca: str = "") -> str:
    """Delete the manifest that a name stands for at the registry; returns its digest.

    Raises RegistryError, also where the registry doesn't allow it.
    """
    name = remote(ref)
    client = Client(name.registry, insecure=insecure, ca=ca)
    digest = name.digest or client.manifest(name.repository, name.wanted).digest
    client.delete(name.repository, digest)
    return digest
