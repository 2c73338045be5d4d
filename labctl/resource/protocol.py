"""What a resource is.  The rooms below offer classes of this shape; they need not import this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, Self, runtime_checkable

from labctl.errors import LabError
from labctl.looks import Look, Outlook, Owner, Signs


@runtime_checkable
class Resource(Protocol):
    """One object on a host: a frozen dataclass that round-trips through JSON (see codec).

    Its key follows from kind and name alone, within its lab.  All three verbs are idempotent and
    bounded in time; they raise LabError, whose message names the object.
    """

    kind: ClassVar[str]

    @property
    def owner(self) -> Owner:
        """The lab it belongs to."""

    @property
    def name(self) -> str:
        """Unique within its kind and lab."""

    @property
    def node(self) -> str:
        """The node it belongs to, or "" when it belongs to the lab."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys that must be made first; when one of them is replaced, so is this."""

    @property
    def after(self) -> tuple[str, ...]:
        """Keys that come first when they are there: order, not dependence."""

    def make(self) -> Sequence[str] | None:
        """Make it.  There already and ours: fine.  There and not ours: errors.Foreign.

        May return sentences that a person should be told although it did not fail.
        """

    def look(self) -> Look:
        """What the host says now, never what we remember."""

    def unmake(self) -> Sequence[str] | None:
        """Unmake it.  Absence is fine; returns only when it is really gone."""


@runtime_checkable
class Batched(Protocol):
    """A resource class that handles many at once, for speed; each of the three may be there alone.

    All answers are by name.  An item whose attribute `batched` is False is made alone all the same.
    """

    @classmethod
    def make_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Make all; name → failure, empty when all is well."""

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """Look at all with one question to the host."""

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Unmake all; name → failure."""


@runtime_checkable
class Changeable(Protocol):
    """A resource that can be changed while it is there, and says beforehand what that comes to.

    One that has `change` without `outlook` is tried, and replaced where `change` gives False.
    """

    def outlook(self, old: Self, look: Look | None) -> Outlook:
        """What becomes of `old`.  Pure.

        `look` was taken of this one, so that one that is there may look broken in that it is not so yet.

        Raises UsageError for a change that must not be made.
        """

    def change(self, old: Self) -> bool:
        """Make `old` this, where the outlook is live or still."""


@runtime_checkable
class Resting(Protocol):
    """A resource that can be put to rest before it, or what it needs, is unmade to be made again."""

    def rest(self) -> None:
        """End it in good order, so that it can go on later; bounded in time."""


@runtime_checkable
class Signed(Protocol):
    """A resource that tells what its look goes by.  One that can't be told by signs has none of this."""

    def signs(self) -> Signs | None:
        """What `look` goes by, all of it; None when that is more than signs can say."""


def key_of(resource: Resource) -> str:
    """The key of a resource in its lab: "kind:name"."""
    return f"{resource.kind}:{resource.name}"


def gate_of(resource: Resource) -> str:
    """The concurrency class of a resource ("boot": one per core), or "" for none."""
    return str(getattr(type(resource), "gate", ""))


def beside(resource: Resource) -> frozenset[str]:
    """Kinds that need it and yet needn't be gone before it: it is unmade while they still are."""
    found: frozenset[str] = getattr(type(resource), "beside", frozenset())
    return found


def stands_on(resource: Resource) -> frozenset[str]:
    """Kinds that it can't run on while they are changed: it is restarted with them."""
    found: frozenset[str] = getattr(type(resource), "stands_on", frozenset())
    return found


def restarts(resource: Resource) -> bool:
    """Whether to unmake it and make it again loses nothing, so that what needs it can stay."""
    return bool(getattr(type(resource), "restarts", False))


def loses(kind: type[Resource]) -> str:
    """What goes with an object of that class when it is replaced, for a person; "" for nothing."""
    return str(getattr(kind, "loses", ""))


def follows(resource: Resource) -> bool:
    """Whether it is made again whenever something it needs is (a wait for readiness, say)."""
    return bool(getattr(type(resource), "follows", False))
