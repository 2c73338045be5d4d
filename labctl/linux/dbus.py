"""A small D-Bus client: method calls and signals over a unix socket, as far as systemd's manager needs it.

From the D-Bus specification 0.42: "Marshaling", "Message protocol", "Authentication protocol" (EXTERNAL).
Values are Python's own: a struct is a tuple, an array a list, a dict entry a pair in a list, and a variant
the pair (signature, value).  File descriptors and the types no message of ours has are left out.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from labctl.linux import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections` cost a cold process 15 ms
    from collections.abc import Iterator, Sequence
    from typing import Any

_FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGN = {"y": 1, "n": 2, "q": 2, "b": 4, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8}
_ALIGN |= {"s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8, "{": 8}
_METHOD_CALL, _METHOD_RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _, _SIGNATURE = range(1, 9)
_MOST = 1 << 27  # bytes of a message, by the specification
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class BusError(OSError):
    """A bus that can't be reached (`name` is ""), or an error that a call was answered with."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


def types_of(signature: str) -> Iterator[str]:
    """The complete types of a signature, one after the other.  Raises ValueError."""
    start = 0
    while start < len(signature):
        end = _end_of_type(signature, start)
        yield signature[start:end]
        start = end


def _end_of_type(signature: str, start: int) -> int:
    """Where the complete type that begins at `start` ends."""
    try:
        letter = signature[start]
        if letter == "a":
            return _end_of_type(signature, start + 1)
        if letter in "({":
            end = start + 1
            while signature[end] not in ")}":
                end = _end_of_type(signature, end)
            return end + 1
    except IndexError:
        letter = "nothing"
    if letter not in _ALIGN:
        raise ValueError(f"bad D-Bus signature {signature!r}: {letter} at {start}")
    return start + 1


def marshal(signature: str, values: Sequence[Any], out: bytearray | None = None) -> bytearray:
    """Write values, little-endian, behind what `out` holds.  Raises ValueError, struct.error."""
    out = bytearray() if out is None else out
    for kind, value in zip(types_of(signature), values, strict=True):
        _put(out, kind, value)
    return out


def _pad(out: bytearray, kind: str) -> None:
    out += bytes(-len(out) % _ALIGN[kind[0]])


def _put(out: bytearray, kind: str, value: Any) -> None:
    _pad(out, kind)
    letter = kind[0]
    if letter in _FIXED:
        out += struct.pack("<" + _FIXED[letter], value)
    elif letter in "so":
        raw = value.encode()
        out += struct.pack("<I", len(raw)) + raw + b"\0"
    elif letter == "g":
        out += bytes((len(value),)) + value.encode() + b"\0"
    elif letter == "v":
        inner, content = value
        _put(out, "g", inner)
        _put(out, inner, content)
    elif letter == "a":
        place = len(out)
        out += bytes(4)
        _pad(out, kind[1:])  # counts for nothing in the length
        first = len(out)
        for item in value:
            _put(out, kind[1:], item)
        struct.pack_into("<I", out, place, len(out) - first)
    else:
        marshal(kind[1:-1], value, out)


class _Reader:
    """Reads values from a message's bytes."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data = data
        self.order = order
        self.at = 0

    def take(self, signature: str) -> list[Any]:
        return [self._get(kind) for kind in types_of(signature)]

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(self.order + _FIXED[letter], self.data, self.at)
        self.at += _ALIGN[letter]
        return value

    def _get(self, kind: str) -> Any:
        letter = kind[0]
        self.at += -self.at % _ALIGN[letter]
        if letter in _FIXED:
            value = self._number(letter)
            return bool(value) if letter == "b" else value
        if letter in "sog":
            size = self._number("y" if letter == "g" else "u")
            text = self.data[self.at : self.at + size].decode(errors="replace")
            self.at += size + 1
            return text
        if letter == "v":
            inner = self._get("g")
            return inner, self._get(inner)
        if letter == "a":
            size = self._number("u")
            self.at += -self.at % _ALIGN[kind[1]]
            end = self.at + size
            found = []
            while self.at < end:
                found.append(self._get(kind[1:]))
            return found
        return tuple(self.take(kind[1:-1]))


class Message:
    """One message that came in."""

    __slots__ = ("body", "fields", "kind")

    def __init__(self, kind: int, fields: dict[int, Any], body: list[Any]) -> None:
        self.kind = kind
        self.fields = fields
        self.body = body


def message(
    serial: int, target: tuple[str, str, str], member: str, signature: str, values: Sequence[Any]
) -> bytes:
    """The bytes of a method call; `target` is (destination or "", object path, interface)."""
    body = marshal(signature, values)
    destination, path, interface = target
    fields = [(_PATH, ("o", path)), (_INTERFACE, ("s", interface)), (_MEMBER, ("s", member))]
    if destination:
        fields.append((_DESTINATION, ("s", destination)))
    if signature:
        fields.append((_SIGNATURE, ("g", signature)))
    head = marshal("yyyyuua(yv)", (ord("l"), _METHOD_CALL, 0, 1, len(body), serial, fields))
    head += bytes(-len(head) % 8)
    return bytes(head + body)


def socket_of(address: str) -> str:
    """The first unix socket of a D-Bus address ("\\0…" for an abstract one).  Raises BusError."""
    for part in address.split(";"):
        transport, _, rest = part.partition(":")
        words = dict(word.partition("=")[::2] for word in rest.split(","))
        if transport == "unix" and words.get("path"):
            return _unquoted(words["path"])
        if transport == "unix" and words.get("abstract"):
            return "\0" + _unquoted(words["abstract"])
    raise BusError(f"D-Bus address {address!r}: only unix sockets are spoken to")


def _unquoted(text: str) -> str:
    first, *rest = text.split("%")
    return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)


class Bus:
    """A connection.  `direct` is one to a service itself, without a bus between.  Use with `with`."""

    def __init__(self, path: str, *, direct: bool = False, timeout: float = 30.0) -> None:
        """Connect and say who we are.  Raises BusError."""
        self.direct = direct
        self.timeout = timeout
        self._serial = 0
        self._rest = b""
        self._signals: list[Message] = []
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(path)
            self._greet()
        except OSError as error:
            self._sock.close()
            where = path.replace("\0", "@")
            raise BusError(f"unable to connect to D-Bus at {where}: {error.strerror or error}") from error
        if not direct:
            self.call(BUS, "Hello")

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _greet(self) -> None:
        uid = namespaces.to_host(namespaces.read_map("/proc/self/uid_map"), os.geteuid())
        self._sock.sendall(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
        while b"\r\n" not in self._rest:
            self._fill()
        line, _, self._rest = self._rest.partition(b"\r\n")
        if not line.startswith(b"OK"):
            raise BusError(f"authentication failed: {line.decode(errors='replace')}")
        self._sock.sendall(b"BEGIN\r\n")

    def _fill(self) -> None:
        part = self._sock.recv(65536)
        if not part:
            raise BusError("connection closed by the bus")
        self._rest += part

    def _bytes(self, count: int, end: float) -> bytes:
        while len(self._rest) < count:
            left = end - time.monotonic()
            if left <= 0:
                raise BusError("no answer in time")
            self._sock.settimeout(left)
            self._fill()
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def _receive(self, end: float) -> Message:
        head = self._bytes(16, end)
        order = "<" if head[:1] == b"l" else ">"
        kind = head[1]
        length, _, fields_length = struct.unpack(order + "III", head[4:])
        padded = fields_length + -fields_length % 8
        if padded + length > _MOST:
            raise BusError("a message longer than the specification allows")
        raw = self._bytes(padded + length, end)
        reader = _Reader(head + raw[:padded], order)
        reader.at = 16  # alignment counts from the message's first byte
        fields: dict[int, Any] = {}
        while reader.at < 16 + fields_length:
            code, (_, value) = reader.take("(yv)")[0]
            fields[code] = value
        body = _Reader(raw[padded:], order).take(fields.get(_SIGNATURE, ""))
        return Message(kind, fields, body)

    def call(
        self, target: tuple[str, str, str], member: str, signature: str = "", values: Sequence[Any] = ()
    ) -> list[Any]:
        """Call a method and return what it answers.  Raises BusError."""
        self._serial += 1
        serial = self._serial
        if self.direct:
            target = ("", *target[1:])
        end = time.monotonic() + self.timeout
        try:
            self._sock.sendall(message(serial, target, member, signature, values))
            while True:
                got = self._receive(end)
                if got.kind == _SIGNAL:
                    self._signals.append(got)
                elif got.fields.get(_REPLY_SERIAL) == serial:
                    break
        except BusError as error:
            raise BusError(f"D-Bus call {member}: {error}") from error
        except OSError as error:
            raise BusError(f"D-Bus call {member}: {error.strerror or 'no answer in time'}") from error
        if got.kind == _ERROR:
            said = got.body[0] if got.body and isinstance(got.body[0], str) else ""
            raise BusError(said or str(got.fields.get(_ERROR_NAME)), str(got.fields.get(_ERROR_NAME)))
        return got.body

    def signals(self, member: str) -> Iterator[list[Any]]:
        """The bodies of a signal, those that came since the connection was made first.

        Raises BusError when none comes within the connection's `timeout`.
        """
        end = time.monotonic() + self.timeout
        while True:
            try:
                got = self._signals.pop(0) if self._signals else self._receive(end)
            except BusError:
                raise
            except OSError as error:
                raise BusError(f"D-Bus signal {member}: {error.strerror or 'none in time'}") from error
            if got.kind == _SIGNAL and got.fields.get(_MEMBER) == member:
                yield got.body
