"""`shadow-mmu maps` and `shadow-mmu walk`: what they print, their exit codes, what they refuse."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.dumps.conftest import RealDump
from tests.dumps.images import Cpu, ElfImage, Segment, chain, flat, small_elf, table

from shadow_mmu.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.elf"
    path.write_bytes(small_elf().build())
    return path


def test_maps_lists_roots_and_ranges(real: RealDump) -> None:
    done = run("maps", real.elf)
    assert done.exit_code == 0, done.output
    facts = real.facts["cpus"]
    levels, leaves, tables = real.levels, facts[0]["leaves"], facts[0]["pt_pages"]
    assert f"CR3 {facts[0]['cr3']}, {levels} levels: {leaves:,} pages (" in done.stdout
    assert f", {tables} tables read" in done.stdout
    for one in facts:
        assert f"kernel half of {one['pti_pair']}" in done.stdout
        assert f"user half of {one['cr3']}" in done.stdout
    assert "│ 0x0000000000400000 │ 0x00000000004f0000 │   960 KiB │ 240 x 4 KiB │ r-- u" in done.stdout
    assert done.stderr == ""


def test_maps_json_is_one_object_with_every_range(real: RealDump) -> None:
    done = run("maps", real.elf, "--json")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    facts = real.facts["cpus"][0]
    assert found.keys() == {
        "dump", "format", "cpus", "roots", "cr3", "levels", "levels_from", "other_half", "leaves", "by_level", "tables",
        "absent_tables", "reserved_entries", "ranges",
    }  # fmt: skip
    assert (found["format"], found["cr3"], found["levels"], found["levels_from"]) == (
        "elf",
        facts["cr3"],
        real.levels,
        "CR4",
    )
    assert (found["leaves"], found["by_level"]) == (facts["leaves"], facts["by_level"])
    assert found["other_half"] == {"cr3": facts["pti_pair"], "half": "user", "pair": facts["cr3"], "cpus": []}
    assert [cpu["cr3"] for cpu in found["cpus"]] == [cpu["cr3"] for cpu in real.facts["cpus"]]
    assert sum(one["pages"] for one in found["ranges"]) == facts["leaves"]
    assert found["ranges"][0] == {
        "start": "0x400000",
        "end": "0x4f0000",
        "page_size": 4096,
        "pages": 240,
        "rights": "r--",
        "user": True,
        "global": False,
        "gpa": f"{real.info_tlb[0][1]:#x}",
        "runs": found["ranges"][0]["runs"],
    }
    contiguous = json.loads(run("maps", real.elf, "--json", "--contiguous").stdout)["ranges"]
    assert len(contiguous) > len(found["ranges"])
    assert {one["runs"] for one in contiguous} == {1}


def test_another_root_is_chosen_by_cr3_or_by_vcpu(real: RealDump) -> None:
    first, second = real.facts["cpus"]
    by_cpu = json.loads(run("maps", real.elf, "--cpu", 1, "--json").stdout)
    assert (by_cpu["cr3"], by_cpu["leaves"]) == (second["cr3"], second["leaves"])
    by_cr3 = json.loads(run("maps", real.elf, "--cr3", first["pti_pair"], "--json").stdout)
    assert (by_cr3["cr3"], by_cr3["leaves"]) == (first["pti_pair"], first["pti_pair_leaves"])
    assert by_cr3["other_half"]["half"] == "kernel"


def test_a_lime_image_needs_a_cr3_and_is_told_its_levels(real: RealDump) -> None:
    refused = run("maps", real.lime)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "expected a CR3" in refused.stderr
    facts = real.facts["cpus"][0]
    done = run("maps", real.lime, "--cr3", facts["cr3"], "--levels", real.levels)
    assert done.exit_code == 0
    assert f"{facts['leaves']:,} pages" in done.stdout
    assert f"half of a KPTI pair: the user half is {facts['pti_pair']}" in done.stdout
    assert "assumed" not in done.stdout


def test_levels_that_nothing_tells_are_said_to_be_assumed(tmp_path: Path) -> None:
    path = tmp_path / "memory.raw"
    path.write_bytes(flat(chain(4), 0x8000))
    done = run("maps", path, "--cr3", 0x1000)
    assert done.exit_code == 0
    assert "4 levels are assumed: the dump has no CR4 (--levels 5 for LA57)" in done.stdout
    assert json.loads(run("maps", path, "--cr3", "4096", "--json").stdout)["levels_from"] == "assumed"
    assert (
        json.loads(run("walk", path, 0, "--cr3", "0x1000", "--levels", 4, "--json").stdout)["levels_from"] == "argument"
    )


def test_what_maps_nothing_though_present_is_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.elf"
    root = table({0: 0x99000 | 7, 1: 0x2000 | 1 << 7 | 1})
    path.write_bytes(ElfImage([Segment(0x1000, root)], [Cpu(cr3=0x1000)]).build())
    done = run("maps", path)
    assert done.exit_code == 0
    assert "tables that are not in the dump: 1, one at gva 0x0, level 3: gpa 0x99000" in done.stdout
    assert "entries with a reserved bit set: 1, one at gva 0x8000000000, level 4: entry 0x2081" in done.stdout
    assert "nothing mapped" in done.stdout


def test_walk_draws_the_walk(small: Path) -> None:
    done = run("walk", small, "0x123")
    assert done.exit_code == 0
    assert done.stdout.startswith("0x123 through the guest's 4-level tables: 0x7123, in a page of 4 KiB, rwx u\n")
    assert "│ 4 PML4 │ 0x1000 │" in done.stdout
    found = json.loads(run("walk", small, "0x123", "--json").stdout)
    assert (found["dump"], found["gva"], found["guest"]["address"]) == (str(small), "0x123", "0x7123")


@pytest.mark.parametrize("gva", ["0x40000000", "0x8000000000000000"])
def test_an_address_that_is_not_mapped_is_an_answer(small: Path, gva: str) -> None:
    done = run("walk", small, gva)
    assert done.exit_code == 0
    assert "not present at level 3" in done.stdout or "non-canonical" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["maps"], "Missing argument"),
        (["maps", "FILE", "--cr3", "x"], "'x' is no number from 0 to 2^64-1"),
        (["maps", "FILE", "--cr3", "-1"], "'-1' is no number"),
        (["maps", "FILE", "--cr3", "0x10000000000000000"], "is no number"),
        (["maps", "FILE", "--cr3", "0x9000"], "its table at gpa 0x9000 not in the dump"),
        (["maps", "FILE", "--cr3", "0x1000", "--cpu", "0"], "expected one of the two"),
        (["maps", "FILE", "--cpu", "7"], "no vCPU 7"),
        (["maps", "FILE", "--cpu", "-1"], "--cpu"),
        (["maps", "FILE", "--levels", "3"], "--levels"),
        (["maps", "FILE", "--format", "vmss"], "--format"),
        (["maps", "FILE", "--format", "lime"], "no LiME range"),
        (["maps", "FILE", "--limit", "0"], "--limit"),
        (["maps", "absent"], "cannot be opened"),
        (["maps", "."], "is no regular file"),
        (["walk", "FILE"], "Missing argument"),
        (["walk", "FILE", "ffff"], "'ffff' is no number"),
        (["walk", "FILE", "1e3"], "'1e3' is no number"),
        (["walk", "absent", "0"], "cannot be opened"),
    ],
)
def test_wrong_usage_and_bad_files_are_exit_code_2(small: Path, arguments: list[str], text: str) -> None:
    done = run(*(small if one == "FILE" else one for one in arguments))
    assert (done.exit_code, done.stdout) == (2, "")
    assert text in " ".join(done.stderr.split())


def test_a_limit_is_kept(small: Path) -> None:
    assert run("maps", small, "--limit", 1).exit_code == 0
    path = small.with_name("loop.elf")
    path.write_bytes(ElfImage([Segment(0x1000, table({0: 0x1007, 1: 0x1007}))]).build())
    done = run("maps", path, "--limit", 15)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "too many pages mapped" in done.stderr


def test_help_names_formats_and_options() -> None:
    for command in ("maps", "walk"):
        done = run(command, "--help")
        assert done.exit_code == 0
        for option in ("--cr3", "--cpu", "--levels", "--format", "--json"):
            assert option in done.stdout
    assert "LiME" in run("maps", "--help").stdout
