"""JSON without the `json` package: that costs a cold process 9 ms (it imports `re`), its C parts nothing."""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Settings:
    """What the C scanner asks its decoder for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner wants the attribute


def loads(text: str) -> Any:
    """Parse one document.  Raises ValueError."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = _json.make_scanner(_Settings)(text, start)  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError(f"no JSON value at character {error.value}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except SystemError:  # the scanner finds no json.decoder to take its error from: let that say it
        import json

        return json.loads(text)
    if text[end:].strip(" \t\r\n"):
        raise ValueError(f"more text after the JSON value, at character {end}")
    return value


def dumps(value: Any) -> str:
    """Compact JSON of dicts with string keys, lists, tuples, strings, numbers, booleans and None."""
    out: list[str] = []
    _put(value, out)
    return "".join(out)


def _put(value: Any, out: list[str]) -> None:
    if isinstance(value, str):
        out.append(_json.encode_basestring_ascii(value))
    elif value is None or isinstance(value, bool):
        out.append({None: "null", True: "true", False: "false"}[value])
    elif isinstance(value, (int, float)):
        out.append(repr(value))
    elif isinstance(value, dict):
        mark = "{"
        for key, item in value.items():
            out += [mark, _json.encode_basestring_ascii(key), ":"]
            _put(item, out)
            mark = ","
        out.append("{}" if mark == "{" else "}")
    elif isinstance(value, (list, tuple)):
        mark = "["
        for item in value:
            out.append(mark)
            _put(item, out)
            mark = ","
        out.append("[]" if mark == "[" else "]")
    else:
        raise TypeError(f"no JSON for {type(value).__name__}")
