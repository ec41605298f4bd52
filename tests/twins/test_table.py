"""The table of the twins can fail: a survivor, a stranger, too few, a file that is none."""

import json
from pathlib import Path

import pytest
from tests.twins import table
from tests.twins.table import Result


def results(names: list[str], tool: str = "loom") -> list[Result]:
    return [Result(name, "caught", tool, 3, 0.5) for name in names]


def write(path: Path, found: list[Result]) -> Path:
    lines = (
        {"model": one.model, "kind": one.kind, "tool": one.tool, "executions": one.executions, "seconds": one.seconds}
        for one in found
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_sources_name_more_than_sixty_twins_each_protocol_among_them() -> None:
    twins = table.named()
    assert len(twins) >= table.AT_LEAST
    for protocol in ("P1", "P1b", "P1c", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P8b", "P10", "P12"):
        assert sum(name.startswith(f"{protocol} twin,") for name in twins) >= 3, protocol
        assert protocol in table.right_forms()
    assert any(name.startswith("P9-") for name in twins)


def test_no_two_models_of_one_name() -> None:
    assert not set(table.named()) & set(table.right_forms())


def test_all_caught_by_one_checker_or_the_other_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins = table.named()
    half = len(twins) // 2
    loom = write(tmp_path / "loom.jsonl", [*results(twins[:half]), Result("P1", "holds", "loom", 565, 0.1)])
    other = write(tmp_path / "other.jsonl", results(twins[half:], "explored"))
    assert table.main([str(loom), str(other)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(twins)} of {len(twins)} twins caught" in printed
    assert f"loom: {half} twins caught; 1 models hold in all 565 executions" in printed
    for name in twins:
        assert name in printed


def test_a_survivor_fails_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins = table.named()
    assert table.main([str(write(tmp_path / "loom.jsonl", results(twins[1:])))]) == 1
    assert f"{twins[0]}: no checker caught it" in capsys.readouterr().out


def test_a_twin_that_held_is_a_survivor() -> None:
    twins = table.named()
    found = [*results(twins[1:]), Result(twins[0], "holds", "loom", 9, 0.1)]
    assert table.problems(found, twins) == [f"{twins[0]}: no checker caught it"]


def test_strangers_and_too_few_are_told() -> None:
    assert table.problems(results(["P99 twin, odd"]), []) == [
        "P99 twin, odd: caught, but the sources name no such twin",
        "1 twins were caught: expected at least 60",
    ]


@pytest.mark.parametrize(
    "line", ["{}", "x", "3", '{"model": "P1", "kind": "lost", "tool": "loom", "executions": 1, "seconds": 1}']
)
def test_what_is_no_result_ends_the_program(line: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SystemExit, match=r"results.jsonl:1: .* is no result"):
        table.main([str(path)])


def test_without_results_it_says_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make loom"):
        table.main([str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="at least one"):
        table.main([])
