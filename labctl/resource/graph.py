"""A set of resources and their order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from labctl.errors import LabError
from labctl.resource.protocol import Resource, key_of


class Graph:
    """Resources by key, checked: no key twice, every need met, no cycle."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        """Raises LabError naming the keys when the graph is not sound (a mistake in a planner)."""
        self._by_key: dict[str, Resource] = {}
        for resource in resources:
            key = key_of(resource)
            if key in self._by_key:
                raise LabError(f"the plan holds {key} twice")
            self._by_key[key] = resource
        for key, resource in self._by_key.items():
            for need in resource.needs:
                if need not in self._by_key:
                    raise LabError(f"the plan has {key}, which needs {need}, but no {need}")
        self._order = tuple(order({key: self.before(key) for key in self._by_key}))

    def __iter__(self) -> Iterator[Resource]:
        """In an order in which they can be made."""
        return (self._by_key[key] for key in self._order)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> Resource:
        return self._by_key[key]

    def before(self, key: str) -> tuple[str, ...]:
        """The keys that come before this one: its needs, and those of its `after` that are here."""
        resource = self._by_key[key]
        return (*resource.needs, *(other for other in resource.after if other in self._by_key))


def order(before: Mapping[str, Iterable[str]]) -> list[str]:
    """Sort keys so that each comes after those it names; stable: the given order breaks ties.

    Keys that are named but not given are left out.  Raises LabError naming the cycle's members.
    (graphlib's sorter has no stable order, and a plan that two runs print differently can't be diffed.)
    """
    place = {key: index for index, key in enumerate(before)}
    waits = {key: {other for other in others if other in place} for key, others in before.items()}
    frees: dict[str, list[str]] = {key: [] for key in before}
    for key, others in waits.items():
        for other in others:
            frees[other].append(key)
    ready = [place[key] for key, others in waits.items() if not others]
    heapq.heapify(ready)
    keys = list(before)
    done: list[str] = []
    while ready:
        key = keys[heapq.heappop(ready)]
        done.append(key)
        for freed in frees[key]:
            waits[freed].discard(key)
            if not waits[freed]:
                heapq.heappush(ready, place[freed])
    if len(done) < len(keys):
        stuck = sorted(set(keys) - set(done))
        raise LabError(f"these wait for each other in a circle: {', '.join(stuck)}")
    return done
