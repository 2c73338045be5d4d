"""Command-line options as runc's users write them: -x, --word, --word value, --word=value, before the names.

Not argparse: it costs a cold process 9 ms, takes abbreviations, and would look for options behind the
container's name, where the program's own begin.
"""

from __future__ import annotations

from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Kind = str  # "flag", "text", "number" or "list"


class Options:
    """The values by the option's long name without dashes, "-" as "_"; and the words that follow."""

    def __init__(self, values: dict[str, str | bool | int | list[str]], words: list[str]) -> None:
        self.values = values
        self.words = words

    def text(self, name: str) -> str:
        """A text, "" when not given."""
        return str(self.values.get(name) or "")

    def flag(self, name: str) -> bool:
        """Whether it was given."""
        return bool(self.values.get(name))

    def number(self, name: str) -> int | None:
        """A number, None when not given."""
        value = self.values.get(name)
        return value if isinstance(value, int) else None

    def many(self, name: str) -> list[str]:
        """All values of an option that may be repeated."""
        value = self.values.get(name)
        return value if isinstance(value, list) else []


def parse(
    words: Sequence[str],
    table: Mapping[str, Kind],
    short: Mapping[str, str] | None = None,
    *,
    anywhere: bool = False,
) -> Options:
    """Read options up to the first other word, or `anywhere` as runc does where no program's options follow.

    Raises ContainerError as "flag provided but not defined".
    """
    values: dict[str, str | bool | int | list[str]] = {}
    rest = list(words)
    found: list[str] = []
    while rest:
        word = rest[0]
        if word == "--":
            rest.pop(0)
            break
        if not word.startswith("-") or word == "-":
            if not anywhere:
                break
            found.append(rest.pop(0))
            continue
        rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        name = (short or {}).get(name, name)
        kind = table.get(name)
        if kind is None:
            raise ContainerError(f"flag provided but not defined: -{word.lstrip('-').partition('=')[0]}")
        key = name.replace("-", "_")
        if kind == "flag":
            values[key] = not equals or value.lower() in ("true", "1", "t")
            continue
        if not equals:
            if not rest:
                raise ContainerError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        _store(values, key, kind, value)
    return Options(values, [*found, *rest])


def _store(values: dict[str, str | bool | int | list[str]], key: str, kind: Kind, value: str) -> None:
    if kind == "list":
        held = values.setdefault(key, [])
        assert isinstance(held, list)
        held.append(value)
    elif kind == "number":
        try:
            values[key] = int(value)
        except ValueError:
            raise ContainerError(
                f'invalid value "{value}" for flag -{key.replace("_", "-")}: not a number'
            ) from None
    else:
        values[key] = value
