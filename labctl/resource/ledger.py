"""The ledger: what labctl is about to make, has made and is about to unmake, on disk before it happens.

SQLite (WAL, synchronous=FULL), one per home.  States of a row: intent → made → leaving → gone
(a gone row is deleted).  Claims (subnets, host ports) are taken in the same transaction as the
rows that use them, so two labs never get the same one.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labctl.errors import Foreign, LabError, NoRoom
from labctl.home import free_bytes, read_only, write_hint
from labctl.records import dataclass
from labctl.resource.reserve import LEAST, Reserve

SCHEMA = 1
BUSY_SECONDS = 20.0

_TABLES = """
CREATE TABLE IF NOT EXISTS labs (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL, boot TEXT NOT NULL,
  source TEXT NOT NULL, digest TEXT NOT NULL, profile TEXT NOT NULL, options TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS resources (
  lab TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, node TEXT NOT NULL,
  spec TEXT NOT NULL, needs TEXT NOT NULL, after TEXT NOT NULL, state TEXT NOT NULL,
  boot TEXT NOT NULL, changed REAL NOT NULL, seconds REAL NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (lab, key));
CREATE TABLE IF NOT EXISTS nodes (
  lab TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL, record TEXT NOT NULL,
  PRIMARY KEY (lab, name));
CREATE TABLE IF NOT EXISTS claims (
  kind TEXT NOT NULL, value TEXT NOT NULL, lab TEXT NOT NULL, note TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (kind, value));
"""


@dataclass(frozen=True)
class LabRow:
    """One lab: its name, where its profile came from, and the profile and options as JSON text."""

    id: str
    name: str
    created: float
    boot: str
    source: str
    digest: str
    profile: str
    options: str


@dataclass(frozen=True)
class Row:
    """One resource as the ledger knows it.  `seconds` is how long make() took."""

    lab: str
    key: str
    kind: str
    name: str
    node: str
    spec: str
    needs: tuple[str, ...]
    after: tuple[str, ...]
    state: str
    boot: str
    changed: float
    seconds: float
    error: str


@dataclass(frozen=True)
class Claim:
    """A value that only one lab may use: a subnet, a host port."""

    kind: str
    value: str
    lab: str
    note: str = ""


def boot_id() -> str:
    """The id of this boot of the host (random(4)): kernel objects of another boot are gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Ledger:
    """One open ledger.  Safe to use from several threads; several processes may have it open."""

    def __init__(self, path: Path) -> None:
        """Open or make the ledger.

        Raises LabError when the file can't be written, is damaged, or is a newer version's.
        """
        self.path = path
        self._lock = threading.RLock()
        self._reserve = Reserve(path)
        self.boot = boot_id()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except sqlite3.Error as error:
            raise self._failure("open", error, "check its owner and its disk") from error
        except OSError as error:
            raise LabError(
                f"cannot make {path.parent}: {error.strerror}", hint=write_hint(path, error)
            ) from error

    def _open(self) -> None:
        try:
            return self._connect()
        except sqlite3.Error as error:
            if not self._full(error) and not read_only(self.path):
                raise
        if self._reserve.release():
            try:
                return self._connect()
            except sqlite3.Error as error:
                if not self._full(error) and not read_only(self.path):
                    raise
        # As it was left, and not to be written to: right, as long as nobody else has it open.
        log = self.path.with_name(self.path.name + "-wal")
        if not self.path.exists() or (log.exists() and log.stat().st_size):
            raise sqlite3.OperationalError("no room for SQLite's log")
        self._connect(reading=True)

    def _connect(self, *, reading: bool = False) -> None:
        place = str(self.path)
        if reading:
            from urllib.parse import quote

            place = f"file:{quote(place)}?mode=ro&immutable=1"
        self._reading = reading
        self._db = sqlite3.connect(
            place, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None, uri=reading
        )
        try:
            if not reading:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._upgrade()
        except BaseException:
            self._db.close()
            raise

    def spare_bytes(self) -> int:
        """What is free on its disk beyond the reserve."""
        return free_bytes(self.path) - self._reserve.missing()

    def make_room(self) -> None:
        """Give the reserve up when the disk is nearly full: for taking things down, which makes room."""
        if self._reserve.short():
            self._reserve.release()

    def _upgrade(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            self._db.close()
            raise LabError(
                f"the ledger {self.path} was written by a newer labctl"
                f" (schema {version}; this one knows {SCHEMA})",
                hint="upgrade labctl; nothing was changed",
            )
        if version < SCHEMA:
            with self._transaction():
                for statement in _TABLES.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA}")

    def close(self) -> None:
        """Close it; safe to call twice."""
        self._db.close()
        self._reserve.keep()

    @contextmanager
    def _transaction(self, lab: str = "") -> Iterator[sqlite3.Connection]:
        """One transaction; with `lab`, one that changes its rows."""
        with self._lock:
            try:
                if lab:
                    self._drop_notes(lab)
                if self._reading:  # there may be room by now
                    self._db.close()
                    self._open()
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk has rolled it back already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._failure("write", error, "check its owner and its disk") from error

    def _full(self, error: sqlite3.Error) -> bool:
        """Whether it means that the disk has no room: SQLite's log can then not be made, or not be mapped."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF
        doubtful = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
        return code == sqlite3.SQLITE_FULL or (code in doubtful and free_bytes(self.path) < LEAST)

    def _failure(self, verb: str, error: sqlite3.Error, hint: str) -> LabError:
        said = f"cannot {verb} the ledger {self.path}"
        if self._full(error):
            return NoRoom(f"{said}: the disk is full", hint=write_hint(self.path))
        if read_only(self.path):
            return LabError(said, hint=write_hint(self.path, OSError(errno.EROFS, "")))
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            hint = f"mv {self.path} {self.path}.damaged; then `labctl gc` removes what it named, by its marks"
        return LabError(f"{said}: {error}", hint=hint)

    def _drop_notes(self, lab: str) -> None:
        """Take away what was noted of a lab for a quick answer (labctl.lab.again): it is about to change."""
        for note in (self.path.parent / "again").glob(f"{lab}-*"):
            try:
                note.unlink(missing_ok=True)
            except OSError as error:
                raise LabError(
                    f"cannot remove {note}: {error.strerror}", hint=write_hint(note, error)
                ) from error

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._failure("read", error, "check its owner and its disk") from error

    # labs

    def labs(self) -> list[LabRow]:
        """All labs, oldest first."""
        found = self._rows(
            "SELECT id,name,created,boot,source,digest,profile,options FROM labs ORDER BY created,name"
        )
        return [LabRow(*row) for row in found]  # type: ignore[arg-type]

    def lab(self, name: str) -> LabRow | None:
        """The lab of that name (or id)."""
        return next((row for row in self.labs() if name in (row.name, row.id)), None)

    def drop_lab(self, lab: str) -> None:
        """Forget a lab whose objects are all gone: its nodes and claims go with it.

        Raises LabError when rows are left, so that nothing is ever forgotten that may still be there.
        """
        with self._transaction(lab) as db:
            left = db.execute("SELECT count(*) FROM resources WHERE lab=?", (lab,)).fetchone()[0]
            if left:
                raise LabError(f"lab {lab} still has {left} objects in the ledger")
            for table in ("nodes", "claims"):
                db.execute(f"DELETE FROM {table} WHERE lab=?", (lab,))
            db.execute("DELETE FROM labs WHERE id=?", (lab,))

    # what is to be

    def intend(
        self,
        lab: LabRow,
        rows: Iterable[Row],
        *,
        nodes: Mapping[str, str] | None = None,
        claims: Sequence[Claim] | None = None,
    ) -> None:
        """Write, in one transaction, everything that is about to be made.

        `rows` are added or replaced; `nodes` (name → record) and `claims`, when given, replace the
        lab's former ones.  Raises Foreign when a claim belongs to another lab.
        """
        with self._transaction(lab.id) as db:
            db.execute(
                "INSERT INTO labs VALUES (?,?,?,?,?,?,?,?)"
                " ON CONFLICT(id) DO UPDATE SET boot=excluded.boot, source=excluded.source,"
                " digest=excluded.digest, profile=excluded.profile, options=excluded.options",
                (lab.id, lab.name, lab.created, lab.boot, lab.source, lab.digest, lab.profile, lab.options),
            )
            if claims is not None:
                self._claim(db, lab.id, claims)
            if nodes is not None:
                db.execute("DELETE FROM nodes WHERE lab=?", (lab.id,))
                db.executemany(
                    "INSERT INTO nodes VALUES (?,?,?,?)",
                    [(lab.id, name, place, record) for place, (name, record) in enumerate(nodes.items())],
                )
            db.executemany(
                "INSERT OR REPLACE INTO resources VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [
                    (
                        *(row.lab, row.key, row.kind, row.name, row.node, row.spec),
                        *(json.dumps(row.needs), json.dumps(row.after), row.state, row.boot),
                        *(row.changed, row.seconds, row.error),
                    )
                    for row in rows
                ],
            )

    def _claim(self, db: sqlite3.Connection, lab: str, claims: Sequence[Claim]) -> None:
        db.execute("DELETE FROM claims WHERE lab=?", (lab,))
        for claim in claims:
            held = db.execute(
                "SELECT labs.name FROM claims JOIN labs ON labs.id=claims.lab WHERE kind=? AND value=?",
                (claim.kind, claim.value),
            ).fetchone()
            if held:
                raise Foreign(
                    f"{claim.kind} {claim.value} belongs to lab {held[0]}",
                    hint=f"choose another in the profile, or take it down with: labctl down {held[0]}",
                )
            db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?,?,?,?)", (claim.kind, claim.value, lab, claim.note)
            )

    def claims(self, kind: str | None = None) -> list[Claim]:
        """All claims, or those of one kind."""
        found = self._rows("SELECT kind,value,lab,note FROM claims WHERE ? IS NULL OR kind=?", kind, kind)
        return [Claim(*row) for row in found]  # type: ignore[arg-type]

    # what is

    def resources(self, lab: str) -> list[Row]:
        """The rows of one lab, in the order they were intended."""
        found = self._rows(
            "SELECT lab,key,kind,name,node,spec,needs,after,state,boot,changed,seconds,error"
            " FROM resources WHERE lab=? ORDER BY rowid",
            lab,
        )
        return [_row(*row) for row in found]

    def nodes(self, lab: str) -> dict[str, str]:
        """The node records (JSON text) of one lab, in the profile's order."""
        found = self._rows("SELECT name,record FROM nodes WHERE lab=? ORDER BY position", lab)
        return {str(name): str(record) for name, record in found}

    def mark(self, lab: str, state: str, keys: Mapping[str, tuple[float, str]]) -> None:
        """Set the state of rows; `keys` gives (seconds, error) for each."""
        now = time.time()
        with self._transaction(lab) as db:
            db.executemany(
                "UPDATE resources SET state=?, changed=?, seconds=?, error=?, boot=? WHERE lab=? AND key=?",
                [(state, now, secs, error, self.boot, lab, key) for key, (secs, error) in keys.items()],
            )

    def forget(self, lab: str, keys: Iterable[str]) -> None:
        """Delete the rows of objects that are gone."""
        with self._transaction(lab) as db:
            db.executemany("DELETE FROM resources WHERE lab=? AND key=?", [(lab, key) for key in keys])

    def set_node(self, lab: str, name: str, record: str) -> None:
        """Replace one node's record."""
        with self._transaction(lab) as db:
            db.execute("UPDATE nodes SET record=? WHERE lab=? AND name=?", (record, lab, name))


def _row(*fields: Any) -> Row:
    *plain, needs, after, state, boot, changed, seconds, error = fields
    lab, key, kind, name, node, spec = plain
    loaded = tuple(json.loads(needs)), tuple(json.loads(after))
    return Row(lab, key, kind, name, node, spec, *loaded, state, boot, changed, seconds, error)
