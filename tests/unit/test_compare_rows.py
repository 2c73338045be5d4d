"""What a comparison concludes: from observations of this machine, and ones that differ in stated ways."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from labctl.cli import comparison, screen
from labctl.lab.compare import HOST, Column, Comparison, Row, compared
from labctl.lab.compare_rows import size, span
from labctl.lab.model import NodeStatus
from labctl.lab.observe import NAMESPACES, IdRange, Observation, observe_host
from labctl.lab.together import described
from labctl.tiers.record import NodeRecord

REAL = observe_host()
FENCED = replace(
    REAL,
    hostname="box",
    namespaces={kind: REAL.namespaces.get("time", "time:[1]") if kind == "time" else f"{kind}:[7]"
                for kind in NAMESPACES},
    users=(IdRange(0, 231072, 65536),),
    memory_limit=64 << 20,
    capabilities=("CAP_CHOWN", "CAP_KILL"),
    seccomp="filter",
    no_new_privileges=True,
)  # fmt: skip
# A machine of its own: its first namespaces bear the very numbers that the host's do.
MACHINE = replace(REAL, kernel="6.1.0", boot_id="of-emu", hostname="emu", memory=218 << 20)
NESTED = replace(FENCED, kernel="6.1.0", boot_id="of-emu", hostname="nested")

BOX = Column("box", "container", "ready", memory_given=64 << 20, start_seconds=0.048, host_memory=3355443)
EMU = Column(
    "emu", "hardware → emulation", "ready", accelerator="QEMU TCG, emulated x86_64", machine=True,
    emulated=True, memory_given=256 << 20, start_seconds=3.7, host_memory=282 << 20,
)  # fmt: skip
IN_EMU = Column("nested", "container", "ready", inside="emu", emulated=True, start_seconds=0.5)
GONE = Column("para", "para", "skipped", reason="no Xen here", remedy="use another host", machine=True)


def document(*more: Column, host: Observation | None = REAL) -> Comparison:
    columns = more or (
        replace(BOX, seen=FENCED),
        replace(EMU, seen=MACHINE),
        replace(IN_EMU, seen=NESTED),
        GONE,
    )
    return compared("shop", [Column(HOST, seen=host), *columns], 1.0)


def row(found: Comparison, key: str) -> Row:
    return next(r for r in found.rows if r.key == key)


def test_a_node_that_cannot_be_asked_shows_what_is_known_from_outside() -> None:
    mute = replace(EMU, cpus_given=2.0, addresses=("10.1.0.2",), reason="no shell in its image")
    found = document(mute, GONE)
    told = {r.key: r.values["emu"] for r in found.rows if r.values["emu"]}
    assert told["state"] == "ready: no shell in its image"
    assert (told["kernel-shared"], told["addresses"]) == ("no, one of its own", "10.1.0.2")
    assert (told["memory"], told["cpus"]) == ("was given 256 MiB", "was given 2 (emulated)")
    assert told["host-memory"] == "282 MiB (emulated)"
    assert "kernel" not in told and "pid1" not in told, "nobody could tell"
    kept = {r.key for r in found.rows if r.values["para"]}
    assert not kept & {"kernel-shared", "memory", "cpus", "addresses", "host-memory"}, "it isn't there"


def test_each_namespace_by_what_it_is_compared_with() -> None:
    found = document()
    for kind in NAMESPACES:
        cells = row(found, f"ns-{kind}")
        own = kind != "time"
        assert cells.values["box"] == ("its own" if own else "same as host")
        assert cells.values["emu"] == "another kernel"  # though the numbers are the host's
        assert cells.values["nested"] == ("its own, inside emu's kernel" if own else "same as emu")
        assert cells.values["para"] == "" and cells.raw["para"] is None
        assert cells.tones["emu"] == "other"
        assert cells.tones["box"] == ("own" if own else "same")


def test_a_process_without_fences_shares_everything() -> None:
    found = document(replace(BOX, seen=REAL))
    assert {row(found, f"ns-{kind}").raw["box"] for kind in REAL.namespaces} == {"same"}


def test_the_kernel_is_known_by_its_boot_and_not_by_its_version() -> None:
    found = document()
    assert row(found, "kernel-shared").raw == {
        HOST: "host", "box": "host", "emu": "own", "nested": "emu", "para": None,
    }  # fmt: skip
    twin = document(replace(EMU, seen=replace(MACHINE, kernel=REAL.kernel)))
    assert row(twin, "kernel-shared").values["emu"] == "no, one of its own"
    # Without a boot id the tier decides.
    silent = document(replace(EMU, seen=replace(MACHINE, boot_id="")), replace(BOX, seen=FENCED))
    assert row(silent, "kernel-shared").raw["emu"] == "own"


def test_a_container_whose_machine_could_not_be_asked() -> None:
    found = document(replace(EMU, reason="no answer"), replace(IN_EMU, seen=NESTED))
    assert row(found, "ns-pid").values["nested"] == "not known, inside emu's kernel"
    assert row(found, "kernel-shared").values["nested"] == "no, emu's"
    assert row(found, "state").values["emu"] == "ready: no answer"


def test_a_host_that_could_not_be_asked() -> None:
    found = document(replace(BOX, seen=FENCED), replace(EMU, seen=MACHINE), host=None)
    assert row(found, "ns-pid").values == {HOST: "", "box": "not known", "emu": "another kernel"}


def test_a_kernel_without_a_namespace() -> None:
    kinds = {kind: number for kind, number in FENCED.namespaces.items() if kind != "time"}
    found = document(replace(BOX, seen=replace(FENCED, namespaces=kinds)))
    assert row(found, "ns-time").values["box"] == "its kernel has none"


@pytest.mark.parametrize("key", ["cpu", "cpus", "start", "host-memory"])
def test_an_emulated_figure_bears_the_word(key: str) -> None:
    found = document()
    assert row(found, key).values["emu"].endswith(" (emulated)")
    assert "emulated" not in row(found, key).values["box"]


def test_costs_and_limits() -> None:
    found = document()
    assert row(found, "start").values["box"] == "48 ms" and row(found, "start").raw["emu"] == 3.7
    cost = row(found, "host-memory")
    assert (cost.values["box"], cost.values["nested"]) == ("3.2 MiB", "part of emu's")
    assert cost.raw["emu"] == 282 << 20
    memory = row(found, "memory")
    assert memory.values["box"].endswith("may use 64.0 MiB")
    assert memory.values["emu"] == "sees 218 MiB of the 256 MiB it was given"
    assert memory.raw["box"] == {"seen": REAL.memory, "limit": 64 << 20}
    free = document(replace(BOX, memory_given=0, seen=replace(FENCED, memory_limit=None)))
    assert row(free, "memory").values["box"].endswith("no limit")


def test_rights() -> None:
    found = document()
    assert row(found, "users").values["box"] == "65536 users; root here is user 231072 on the host"
    assert row(found, "users").values["nested"] == "65536 users; root here is user 231072 in emu"
    assert row(found, "capabilities").values["box"] == f"2 of {REAL.capabilities_known}"
    assert row(found, "seccomp").values["box"] == "filtered, no new privileges"
    assert row(found, "hostname").values["box"] == "box (its own)"
    assert row(document(replace(BOX, seen=REAL)), "hostname").values["box"].endswith("(as the host)")
    busy = document(replace(BOX, seen=replace(FENCED, ipc={"shm": 2, "sem": 0, "msg": 1})))
    assert row(busy, "ipc").values["box"] == "2 shared memory segments, 1 message queue"


def test_every_row_explains_itself_and_has_every_column() -> None:
    found = document()
    keys = [r.key for r in found.rows]
    assert len(keys) == len(set(keys))
    for each in found.rows:
        assert each.meaning.endswith(".") and "\n" not in each.meaning and each.title and each.group
        assert set(each.values) == set(each.raw) == set(found.nodes)


def test_a_skipped_node_is_a_column_with_its_reason() -> None:
    found = document()
    assert row(found, "state").values["para"] == "skipped: no Xen here; what helps: use another host"
    text = comparison.text(found, 400)
    assert "no Xen here" in text and "PARA" in text.splitlines()[0]


def test_an_observation_that_says_nothing_still_makes_a_column() -> None:
    found = document(replace(BOX, seen=Observation()), replace(EMU, seen=Observation()))
    assert row(found, "pid1").values["box"] == "not told"
    assert row(found, "kernel-shared").raw["box"] == "host"
    assert comparison.text(found, 200) and comparison.page(found)


def test_it_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    screen.document(screen.plain(document()))
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1 and told["nodes"] == [HOST, "box", "emu", "nested", "para"]
    assert told["columns"][1]["seen"]["hostname"] == "box" and told["columns"][4]["seen"] is None
    assert {r["key"] for r in told["rows"]} >= {"kernel", "pid1", "hostname", "ns-pid", "host-memory"}


def test_the_page_stands_alone_and_escapes() -> None:
    evil = replace(FENCED, pid1="<script>alert(1)</script>")
    page = comparison.page(document(replace(BOX, seen=evil), replace(EMU, seen=MACHINE), GONE))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page and "url(" not in page and "@import" not in page and " src=" not in page
    assert "light dark" in page and 'class="emulated"' in page and "no Xen here" in page
    assert all(each.meaning.split(";")[0][:20] in page.replace("&#39;", "'") for each in document().rows)


def test_long_answers_are_wrapped_and_nothing_is_lost() -> None:
    name = "x" * 60
    found = document(replace(BOX, seen=replace(FENCED, hostname=name)))
    text = comparison.text(found, 80)
    assert max(screen.width(line) for line in text.splitlines()) <= 80
    assert text.count("x" * 26) == 2 and f"{'x' * 8} (its own)" in text
    assert "Process 1 — The first process" in comparison.legend(found)


def test_a_record_becomes_a_column() -> None:
    record = NodeRecord(
        name="a", tier="emulation", asked="hardware", image="micro", digest="", arch="x86_64", hostname="a",
        runs_on="this host", accelerator="QEMU TCG, emulated x86_64",
    )  # fmt: skip
    status = NodeStatus("a", record.label, "stopped", "this host", (), "micro", "x86_64")
    column = described(record, status)
    assert (column.tier, column.emulated, column.machine) == ("hardware → emulation", True, True)
    assert column.remedy == "labctl start a" and column.start_seconds is None
    assert described(record, replace(status, state="paused", reason="paused")).reason == ""
    assert described(record, replace(status, state="failed", reason="boom")).reason == "boom"
    assert described(record, replace(status, state="ready", reason="boom")).reason == ""
    inner = replace(record, tier="container", asked="container", inside="a")
    assert described(inner, status).emulated and not described(inner, status).machine


def test_figures_in_words() -> None:
    assert [size(n) for n in (None, 0, 1536, 64 << 20, 282 << 20, 24 << 30)] == [
        "", "0 B", "1.5 KiB", "64.0 MiB", "282 MiB", "24.0 GiB",
    ]  # fmt: skip
    assert [span(n) for n in (0.048, 3.71, 600, 9000)] == ["48 ms", "3.7 s", "10 min", "2.5 h"]
