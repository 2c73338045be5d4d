"""Images from and to registries (OCI distribution-spec 1.1, Docker Registry HTTP API V2)."""

from __future__ import annotations

from labctl.image.registry.client import Client, RegistryError
from labctl.image.registry.pull import pull
from labctl.image.registry.push import push

__all__ = ["Client", "RegistryError", "delete", "pull", "push", "tags"]


def tags(ref: str, *, insecure: bool = False) -> list[str]:
    """The tags of a repository, in order.  Raises RegistryError, UsageError."""
    from labctl.image import refs

    name = refs.parse(ref)
    return Client(name.registry, insecure=insecure).tags(name.repository)


def delete(ref: str, *, insecure: bool = False) -> str:
    """Delete the manifest that a name stands for at the registry; returns its digest.

    Raises RegistryError, also where the registry doesn't allow it.
    """
    from labctl.image import refs

    name = refs.parse(ref)
    client = Client(name.registry, insecure=insecure)
    digest = name.digest or client.manifest(name.repository, name.wanted).digest
    client.delete(name.repository, digest)
    return digest
