"""The tables of figures in the documents: each has its marks, and a bench run fills them by command."""

import json
from pathlib import Path
from typing import Any

import pytest
from benches import publish
from benches.table import Results, all_rows
from tests.meta.tree import ROOT

DOCUMENTS = ("README.md", "docs/performance.md")


def side(median: float | None) -> dict[str, Any]:
    return {"median_per_s": median, "best_per_s": 2e6, "clean": 9, "tries": 9}


def contest(lock: str, vcpus: int, work: int, *, roots: str = "own", locked: float | None = 1e6) -> dict[str, Any]:
    return {
        "lock": lock, "roots": roots, "vcpus": vcpus, "work_ns": work, "hold_ns": 50, "wait_ns": 310, "crowded": vcpus > 2,
        "ratio": 20e6 / locked if locked else None, "fast": side(20e6), "locked": side(locked),
        "acquisitions_per_switch": [0, 3],
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    works = (0, 300, 1400)
    found = {
        "contention": [
            *(contest(lock, vcpus, work) for lock in ("queued", "mutex") for vcpus in (1, 2, 4) for work in works),
            *(contest("queued", 2, work, roots="shared", locked=None) for work in works),
        ],
        "scaling": [{"case": "seed", "ratio": 1.9, "one": side(70e6), "two": side(133e6)}],
        "round_robin": [
            {"policy": policy, "vcpus": 2, "work_ns": 0, "ratio": 2.0, "large": side(28e6), "small": side(14e6)}
            for policy in ("lru:1", "lru:3")
        ],
    }
    (tmp_path / "contention.json").write_text(json.dumps(found))
    return Results(tmp_path)


def test_every_table_has_its_place_in_a_document() -> None:
    names = {mark["name"] for name in DOCUMENTS for mark in publish.MARK.finditer((ROOT / name).read_text())}
    assert set(publish.TABLES) <= names


def test_tables_are_replaced_between_their_marks_and_nothing_else_is(results: Results) -> None:
    text = "before\n<!-- scaling output: begin -->\nold\n<!-- scaling output: end -->\nbetween\n"
    other = "<!-- demo output: begin -->\nkept\n<!-- demo output: end -->\n"
    found = publish.published(text + other, results)
    assert found.startswith("before\n<!-- scaling output: begin -->\n|  | one vCPU | two vCPUs | ratio |\n")
    assert "| seed | 70 (2) | 133 (2) | **1.9x** |\n<!-- scaling output: end -->\nbetween\n" in found
    assert found.endswith(other)
    assert publish.published(found, results) == found


def test_the_headline_has_two_vcpus_with_roots_of_their_own_only(results: Results) -> None:
    head, _, *rows = publish.by_work(results, headline=True).splitlines()
    assert head == "| lock | held ns | waited ns | g = 0 ns | g = 300 ns | g = 1400 ns |"
    assert [row.split(" | ")[0] for row in rows] == ["| queued", "| mutex"]
    assert rows[0].count("20 (2) / 1 (2) **20x**") == 3
    every = publish.by_work(results, headline=False)
    assert len(every.splitlines()) == 2 + 2 * 3 + 1
    assert "noisy **noisy**" in every.splitlines()[-1]


def test_goals_are_judged_with_the_kernels_kind_of_lock_only(results: Results) -> None:
    judged = {row.name: row.meets for row in all_rows(results) if row.name.startswith("2 ") and row.meets is not None}
    assert judged == {f"2 fast over locked, queued, 2 vCPU, own roots, g = {work} ns": True for work in (0, 300, 1400)}
    crowd = [row.name for row in all_rows(results) if "more than processors" in row.name]
    assert len(crowd) == 6
    assert all("4 vCPU" in name for name in crowd)


def test_a_run_with_void_rows_is_not_published(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- scaling output: begin -->\nold\n<!-- scaling output: end -->\n")
    # Only contention was measured here: every other row is void.
    assert publish.main(results.folder, [document]) == 1
    assert "old" in document.read_text()
    assert "void rows: nothing is published" in capsys.readouterr().err
