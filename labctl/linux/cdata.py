"""The part of `ctypes` that system calls need, out of its C half.

The Python half defines much more, and imports `types`: together 1.5 ms and 80 page faults of a cold `labrun`,
a twentieth of all it costs.  The names and their meaning are those of `ctypes`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import (
        CDLL,
        Array,
        PyDLL,
        addressof,
        byref,
        c_char,
        c_int,
        c_long,
        c_size_t,
        c_uint,
        c_uint64,
        c_ulong,
        create_string_buffer,
        get_errno,
    )
else:
    import _ctypes
    from _ctypes import addressof, byref, get_errno

    class c_char(_ctypes._SimpleCData):
        """One byte."""

        _type_ = "c"

    class c_int(_ctypes._SimpleCData):
        """int"""

        _type_ = "i"

    class c_uint(_ctypes._SimpleCData):
        """unsigned int"""

        _type_ = "I"

    class c_long(_ctypes._SimpleCData):
        """long"""

        _type_ = "l"

    class c_ulong(_ctypes._SimpleCData):
        """unsigned long"""

        _type_ = "L"

    class c_uint64(_ctypes._SimpleCData):
        """unsigned long long: 64 bits on every machine."""

        _type_ = "Q"

    c_size_t = c_ulong  # as wide as a pointer wherever Linux runs

    class _Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = c_int

    class _LockedFunction(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO | _ctypes.FUNCFLAG_PYTHONAPI
        _restype_ = c_int

    class CDLL:
        """The functions of a library that is loaded already (None: this program's own)."""

        _kind = _Function

        def __init__(self, name: None, *, use_errno: bool) -> None:
            self._handle = _ctypes.dlopen(name, 0)

        def __getattr__(self, name: str) -> object:
            found = self._kind((name, self))
            setattr(self, name, found)
            return found

    class PyDLL(CDLL):
        """The same, called with the interpreter's lock held."""

        _kind = _LockedFunction

    Array = _ctypes.Array

    def create_string_buffer(init: bytes | int, size: int | None = None) -> object:
        """Bytes that C may read and write; as long as a text and its NUL unless `size` is given."""
        if isinstance(init, int):
            return (c_char * init)()
        found = (c_char * (len(init) + 1 if size is None else size))()
        found.value = init
        return found


__all__ = [
    "CDLL",
    "Array",
    "PyDLL",
    "addressof",
    "byref",
    "c_char",
    "c_int",
    "c_long",
    "c_size_t",
    "c_uint",
    "c_uint64",
    "c_ulong",
    "create_string_buffer",
    "get_errno",
]
