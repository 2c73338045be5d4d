"""What an OCI image is made of: descriptors, the configuration, layers (OCI image-spec 1.1).

Docker's schema 2 media types are read as well; what labctl writes is OCI.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from labctl.errors import LabError
from labctl.image.digests import KNOWN, is_digest
from labctl.records import dataclass

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES = frozenset({INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})

REF_NAME = "org.opencontainers.image.ref.name"

#: The names that kernels and QEMU use, and Go's (which OCI took over).
_TO_OCI = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armv7l": "arm",
    "i386": "386",
    "i686": "386",
    "ppc64el": "ppc64le",
}
_TO_DEBIAN = {"arm": "armhf", "386": "i386", "ppc64le": "ppc64el"}


class BadImage(LabError):
    """An image, a layer or a blob is not what it says it is, or would do harm when unpacked."""


def oci_arch(name: str) -> str:
    """The architecture as OCI writes it: x86_64 → amd64, aarch64 → arm64."""
    return _TO_OCI.get(name, name)


def debian_arch(name: str) -> str:
    """The architecture as Debian writes it: x86_64 → amd64, arm → armhf."""
    arch = oci_arch(name)
    return _TO_DEBIAN.get(arch, arch)


def host_arch() -> str:
    """This machine's architecture as OCI writes it."""
    return oci_arch(os.uname().machine)


@dataclass(frozen=True)
class Descriptor:
    """A pointer to a blob: media type, digest and size in bytes (image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Any, what: str = "descriptor") -> Descriptor:
        """Read one; raises BadImage when a field is missing or of the wrong type."""
        if not isinstance(data, dict):
            raise BadImage(f"{what} is not an object")
        media, digest, size = data.get("mediaType", ""), data.get("digest"), data.get("size")
        if not isinstance(media, str) or not isinstance(size, int) or size < 0:
            raise BadImage(f"{what} has no proper mediaType and size")
        if not is_digest(digest):
            raise BadImage(f"{what} has an unusable digest: {digest!r}", hint=KNOWN)
        annotations, platform = data.get("annotations") or {}, data.get("platform") or {}
        if not isinstance(annotations, dict) or not isinstance(platform, dict):
            raise BadImage(f"{what} has annotations or a platform that are no objects")
        return cls(
            media,
            str(digest),
            size,
            {str(key): str(value) for key, value in annotations.items()},
            {str(key): str(value) for key, value in platform.items() if isinstance(value, str)},
        )

    def to_json(self) -> dict[str, Any]:
        """As the specification writes it."""
        data: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform:
            data["platform"] = dict(self.platform)
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        return data


@dataclass(frozen=True)
class Layer:
    """One layer: the blob (digest, size in bytes, media type) and the digest of the tar inside it."""

    digest: str
    size: int
    diff_id: str
    media_type: str = LAYER


@dataclass(frozen=True)
class HistoryEntry:
    """How a layer came to be; `empty` when the step changed only the configuration."""

    created: str = ""
    created_by: str = ""
    comment: str = ""
    empty: bool = False


@dataclass(frozen=True)
class ImageConfig:
    """What an image asks of whoever runs it (image-spec, config.md)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str = "amd64"
    os: str = "linux"
    created: str = ""
    author: str = ""  # what MAINTAINER says
    healthcheck: Mapping[str, Any] | None = None
    onbuild: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    diff_ids: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Any) -> ImageConfig:
        """Read the configuration blob; raises BadImage."""
        if not isinstance(data, dict) or not isinstance(data.get("rootfs"), dict):
            raise BadImage("the image's configuration has no rootfs")
        inner = data.get("config") or {}
        diff_ids = data["rootfs"].get("diff_ids") or []
        if not isinstance(inner, dict) or not isinstance(diff_ids, list) or not all(map(is_digest, diff_ids)):
            raise BadImage("the image's configuration is malformed")
        return cls(
            entrypoint=_strings(inner.get("Entrypoint")),
            cmd=_strings(inner.get("Cmd")),
            env=_strings(inner.get("Env")),
            working_dir=str(inner.get("WorkingDir") or ""),
            user=str(inner.get("User") or ""),
            exposed_ports=tuple(sorted(inner.get("ExposedPorts") or {})),
            volumes=tuple(sorted(inner.get("Volumes") or {})),
            stop_signal=str(inner.get("StopSignal") or ""),
            labels={str(k): str(v) for k, v in (inner.get("Labels") or {}).items()},
            architecture=str(data.get("architecture") or "amd64"),
            os=str(data.get("os") or "linux"),
            created=str(data.get("created") or ""),
            author=str(data.get("author") or ""),
            healthcheck=inner.get("Healthcheck") or None,
            onbuild=_strings(inner.get("OnBuild")),
            shell=_strings(inner.get("Shell")),
            history=tuple(_history(entry) for entry in data.get("history") or []),
            diff_ids=tuple(diff_ids),
        )

    def to_json(self) -> dict[str, Any]:
        """The configuration blob, with empty fields left out."""
        inner: dict[str, Any] = {
            "User": self.user,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "Volumes": {path: {} for path in self.volumes},
            "WorkingDir": self.working_dir,
            "Labels": dict(sorted(self.labels.items())),
            "StopSignal": self.stop_signal,
            "Healthcheck": dict(self.healthcheck) if self.healthcheck else None,
            "OnBuild": list(self.onbuild),
            "Shell": list(self.shell),
        }
        data: dict[str, Any] = {
            "created": self.created,
            "author": self.author,
            "architecture": self.architecture,
            "os": self.os,
            "config": {key: value for key, value in inner.items() if value},
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
            "history": [_history_json(entry) for entry in self.history],
        }
        return {key: value for key, value in data.items() if value or key in ("config", "rootfs")}

    @property
    def command(self) -> tuple[str, ...]:
        """Entry point and arguments together: what runs when nobody says otherwise."""
        return self.entrypoint + self.cmd

    def environment(self) -> dict[str, str]:
        """The image's variables as a map."""
        return dict(item.partition("=")[::2] for item in self.env)


@dataclass(frozen=True)
class Image:
    """An image in the store: `digest` is the manifest's, `config_digest` is what Docker calls the id."""

    ref: str
    digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]
    config_digest: str = ""
    media_type: str = MANIFEST
    size: int = 0  # bytes of manifest, configuration and layers as stored
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """As OCI writes it: amd64, arm64, riscv64."""
        return self.config.architecture


def _strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise BadImage("the image's configuration is malformed: a list was expected")
    return tuple(str(item) for item in value)


def _history(entry: Any) -> HistoryEntry:
    if not isinstance(entry, dict):
        raise BadImage("the image's configuration has a malformed history")
    return HistoryEntry(
        str(entry.get("created") or ""),
        str(entry.get("created_by") or ""),
        str(entry.get("comment") or ""),
        bool(entry.get("empty_layer")),
    )


def _history_json(entry: HistoryEntry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "created": entry.created,
        "created_by": entry.created_by,
        "comment": entry.comment,
        "empty_layer": entry.empty,
    }
    return {key: value for key, value in data.items() if value}
