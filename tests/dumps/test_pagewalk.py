"""A page walk as a person, a notebook and a program see it; one dimension or two."""

import json
from pathlib import Path

import pytest
from tests.dumps.images import small_elf

from shadow_mmu import PageWalk, open_dump
from shadow_mmu.pagewalk import EntryKind, Rights, WalkDimension, WalkStep, size_name
from shadow_mmu.pagewalk.guest import guest_flags

PICTURE = """\
0x123 through the guest's 4-level tables: 0x7123, in a page of 4 KiB, rwx u
┏━━━━━━━━┳━━━━━━━━┳━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┓
┃ level  ┃ table  ┃ index ┃ entry at ┃ entry              ┃ flags ┃ rights so far ┃ leads to     ┃
┡━━━━━━━━╇━━━━━━━━╇━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━┩
│ 4 PML4 │ 0x1000 │     0 │ 0x1000   │ 0x0000000000002007 │ P W U │ rwx u         │ table 0x2000 │
│ 3 PDPT │ 0x2000 │     0 │ 0x2000   │ 0x0000000000003007 │ P W U │ rwx u         │ table 0x3000 │
│ 2 PD   │ 0x3000 │     0 │ 0x3000   │ 0x0000000000004007 │ P W U │ rwx u         │ table 0x4000 │
│ 1 PT   │ 0x4000 │     0 │ 0x4000   │ 0x0000000000007007 │ P W U │ rwx u         │ page 0x7000  │
└────────┴────────┴───────┴──────────┴────────────────────┴───────┴───────────────┴──────────────┘"""


@pytest.fixture
def walk(tmp_path: Path) -> PageWalk:
    path = tmp_path / "dump"
    path.write_bytes(small_elf().build())
    with open_dump(path) as dump:
        return dump.walk(0x123)


def test_the_repr_is_a_table(walk: PageWalk) -> None:
    assert repr(walk) == PICTURE


def test_html_has_a_row_a_level_and_escapes(walk: PageWalk) -> None:
    html = walk._repr_html_()
    assert html.count("<tr>") == 5
    assert "guest&#x27;s 4-level tables" in html
    assert "<td>table 0x2000</td>" in html


def test_json_has_addresses_as_text(walk: PageWalk) -> None:
    found = json.loads(json.dumps(walk.as_dict()))
    assert found["gva"] == "0x123"
    guest = found["guest"]
    assert (guest["root"], guest["address"], guest["page_size"], guest["rights"]) == ("0x1000", "0x7123", 4096, "rwx u")
    assert guest["steps"][0] == {
        "level": 4,
        "name": "PML4",
        "table": "0x1000",
        "index": 0,
        "entry_address": "0x1000",
        "entry": "0x2007",
        "kind": "table",
        "flags": ["P", "W", "U"],
        "rights": "rwx u",
        "target": "0x2000",
        "notes": [],
    }
    assert "shadow" not in found


def test_a_shadow_dimension_is_shown_beside_the_guests(walk: PageWalk) -> None:
    rights = Rights(writable=False, executable=True, user=True)
    flags = ("host-writable", "<mmu>")
    step = WalkStep(4, "PML4", 0x9000, 3, 8, 0x123, EntryKind.NOT_PRESENT, flags, rights, None)
    both = PageWalk(walk.gva, walk.guest, WalkDimension("shadow", "4-level", 0x123, 0x9000, 4, (step,), step.kind))
    assert repr(both).startswith(PICTURE)
    assert "0x123 through the shadow's 4-level tables: not present at level 4" in repr(both)
    assert "host-writable <mmu>" in repr(both)
    assert "host-writable &lt;mmu&gt;" in both._repr_html_()
    assert both.as_dict()["shadow"]["steps"][0]["entry_address"] == "0x9018"


def test_what_ends_a_walk_is_said(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(small_elf().build())
    with open_dump(path) as dump:
        assert "not present at level 3" in repr(dump.walk(1 << 30))
        assert (
            repr(dump.walk(1 << 62)) == "0x4000000000000000 through the guest's 4-level tables: non-canonical address"
        )
        assert dump.walk(1 << 62)._repr_html_().count("<tr>") == 1


@pytest.mark.parametrize(
    ("entry", "level", "leaf", "flags"),
    [
        (0, 1, True, ""),
        ((1 << 64) - 1, 1, True, "P W U PWT PCD A D PAT G PK=15 NX"),
        ((1 << 64) - 1, 2, True, "P W U PWT PCD A D PS G PAT PK=15 NX"),
        ((1 << 64) - 1, 4, False, "P W U PWT PCD A PS NX"),
        # D, G and the key are ignored in an entry that leads to a table.
        (1 << 6 | 1 << 8 | 5 << 59 | 1, 3, False, "P"),
        (1 << 60 | 1, 1, True, "P PK=2"),
    ],
)
def test_flags_have_the_manuals_names(entry: int, level: int, leaf: bool, flags: str) -> None:  # noqa: FBT001  a test's parameter
    assert " ".join(guest_flags(entry, level, leaf=leaf)) == flags


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1, "1 B"), (1023, "1,023 B"), (1536, "1,536 B"), (12 << 10, "12 KiB"), (1 << 40, "1 TiB"), (1 << 50, "1,024 TiB")],
)  # fmt: skip
def test_a_size_is_told_in_the_largest_unit_that_divides_it(size: int, text: str) -> None:
    assert size_name(size) == text
