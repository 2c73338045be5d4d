"""Records are dataclasses in all that their users see."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from dataclasses import field
from typing import Any, ClassVar

import pytest

from labctl.records import dataclass


@dataclass(frozen=True)
class Base:
    kind: ClassVar[str] = "base"
    one: int
    two: str = "two"


@dataclass(frozen=True, kw_only=True)
class Child(Base):
    many: list[int] = field(default_factory=list)
    unseen: int = field(default=0, compare=False, repr=False)


class Plain(Base):
    pass


@dataclass
class Loose:
    value: int
    twice: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.twice = 2 * self.value


def twins(frozen: bool) -> tuple[type[Any], type[Any]]:
    """The same class by both decorators."""

    def fresh() -> type[Any]:
        names: dict[str, Any] = {
            "__annotations__": {"a": "int", "b": "str", "c": "list"},
            "b": "x",
            "c": field(default_factory=list),
        }
        return type("Twin", (), names)

    return dataclass(frozen=frozen)(fresh()), dataclasses.dataclass(frozen=frozen)(fresh())


@pytest.mark.parametrize("frozen", [True, False])
def test_made_shown_and_compared_as_the_standard_ones(frozen: bool) -> None:
    ours, standard = twins(frozen)
    for args, given in (((1,), {}), ((1, "y"), {"c": [3]}), ((), {"a": 2, "c": [1]})):
        mine, theirs = ours(*args, **given), standard(*args, **given)
        assert repr(mine) == repr(theirs)
        assert mine == ours(*args, **given)
        assert mine != theirs
        assert dataclasses.asdict(mine) == dataclasses.asdict(theirs)
    for args, given in (((), {}), ((1, 2, [], 4), {}), ((1,), {"a": 1}), ((1,), {"d": 1})):
        for cls in (ours, standard):
            with pytest.raises(TypeError):
                cls(*args, **given)
    assert (ours.__hash__ is None) == (standard.__hash__ is None)


def test_fields_of_a_class_that_has_no_instance_yet() -> None:
    ours, standard = twins(True)
    assert dataclasses.is_dataclass(ours)
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(standard)]


def test_inherited() -> None:
    child = Child(1, many=[1])
    assert (child.one, child.two, child.many, child.kind) == (1, "two", [1], "base")
    assert repr(child) == "Child(one=1, two='two', many=[1])"
    assert Child(1, unseen=1) == Child(1, unseen=2)
    assert Child(1).many is not Child(1).many
    assert dataclasses.replace(child, two="2") == Child(1, "2", many=[1])
    assert repr(Plain(3)) == "Plain(one=3, two='two')"
    assert Plain(3) != Base(3)
    assert hash(Base(1)) == hash(Base(1))
    with pytest.raises(TypeError):
        Child(1, "2", [3])  # type: ignore[misc]


def test_frozen_stays_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Base(1).one = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del Base(1).one  # type: ignore[misc]
    loose = Loose(2)
    loose.value = 5
    assert (loose.value, loose.twice) == (5, 4)


def test_copies() -> None:
    child = Child(1, many=[1])
    assert copy.deepcopy(child) == child == pickle.loads(pickle.dumps(child))


def test_methods_of_its_own_stay() -> None:
    @dataclass(frozen=True)
    class Own:
        a: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "own"

    assert (Own(1) == Own(2), hash(Own(1)), repr(Own(1))) == (True, 7, "own")


def test_first_instances_from_many_threads() -> None:
    for _ in range(20):
        ours, _standard = twins(True)
        made: list[object] = []
        start = threading.Barrier(8)

        def work(cls: type[Any] = ours, start: threading.Barrier = start, made: list[object] = made) -> None:
            start.wait()
            made.append(cls(1, c=[2]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 8
        assert all(one == made[0] for one in made)
