"""The sanitizer stage's own eyes: what it takes for a report, for a passed test, for a planted error."""

import json
import re
from pathlib import Path

import pytest
from tests.meta.tree import ROOT
from tests.sanitizers import in_python, stage

RACE = """\
running 1 test
==================
WARNING: ThreadSanitizer: data race (pid=77)
  Read of size 8 at 0x7f by thread T2:
    #0 read<u64> library/core/src/ptr/mod.rs:1 (locks+0x1)
    #1 <shadow_mmu_planted::Plain>::read rust/planted/src/lib.rs:32:9 (locks+0x1)
SUMMARY: ThreadSanitizer: data race library/core/src/ptr/mod.rs:1 in read<u64>
test weak ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.30s
"""
LEAK = "==9==ERROR: LeakSanitizer: detected memory leaks\n"
OVERFLOW = "=================================================================\n==9==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1\n"


@pytest.mark.parametrize("output", [RACE, LEAK, OVERFLOW, "FATAL: ThreadSanitizer: unexpected memory mapping\n"])
def test_each_kind_of_report_is_seen_once(output: str) -> None:
    assert len(stage.reports(output)) == 1


def test_an_allocation_that_is_refused_and_a_line_of_a_test_are_no_reports() -> None:
    refused = "==9==WARNING: AddressSanitizer failed to allocate 0x7 bytes\ntest a_report_is_seen ... ok\n"
    assert stage.reports(refused) == []


def test_passed_tests_count_only_where_none_failed() -> None:
    line = "test result: {}. 12 passed; {} failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.1s\n"
    assert stage.tests_passed(line.format("ok", 0)) == 12
    assert stage.tests_passed(line.format("FAILED", 1)) == 0
    assert stage.tests_passed("Segmentation fault\n") == 0


def test_a_planted_race_is_known_by_the_plain_data_and_by_nothing_else() -> None:
    assert re.search(stage.RACE_ON_PLAIN_DATA, RACE)
    by_gcc = RACE.replace("<shadow_mmu_planted::Plain>::read", "read")
    assert re.search(stage.RACE_ON_PLAIN_DATA, by_gcc)
    assert not re.search(stage.RACE_ON_PLAIN_DATA, by_gcc.replace("#1 read", "#1 apart"))
    assert not re.search(stage.RACE_ON_PLAIN_DATA, RACE.replace("shadow_mmu_planted", "std"))
    assert not re.search(stage.RACE_ON_PLAIN_DATA, RACE.replace("data race", "thread leak"))


def test_only_the_test_programs_are_taken_from_what_cargo_built() -> None:
    def message(name: str, executable: str | None, *, test: bool) -> str:
        fields = {"reason": "compiler-artifact", "manifest_path": "somewhere/Cargo.toml", "executable": executable}
        return json.dumps({**fields, "target": {"name": name}, "profile": {"test": test}})

    messages = [message("lib", None, test=False), message("threads", "built/threads-1", test=True)]
    messages += [message("example", "built/example", test=False), '{"reason": "build-finished", "success": true}']
    found = list(stage.programs("\n".join(messages)))
    assert found == [stage.Program("threads", Path("built/threads-1"), Path("somewhere"))]


class Scripted:
    """Stands for the test programs: what each prints, by its arguments."""

    def __init__(self, status: int, output: str) -> None:
        self.status, self.output = status, output

    def __call__(self, *_: object) -> tuple[int, str]:
        return self.status, self.output


PROGRAM = stage.Program("locks", Path("locks"), Path())


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (0, RACE),  # a report that the runtime did not turn into a failure
        (66, RACE),
        (101, "test result: FAILED. 1 passed; 1 failed; 0 ignored\n"),
        (0, ""),  # a program that is none of libtest's
    ],
)
def test_a_run_with_a_report_or_a_failure_ends_the_stage(
    monkeypatch: pytest.MonkeyPatch, status: int, output: str
) -> None:
    monkeypatch.setattr(stage, "start", Scripted(status, output))
    with pytest.raises(stage.StageError, match="locks"):
        stage.run_tests(stage.SANITIZERS["tsan"], PROGRAM)


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (66, RACE.replace("shadow_mmu_planted", "std")),  # another race
        (101, "test result: FAILED. 0 passed; 1 failed; 0 ignored\n"),  # the test failed by itself
        (0, RACE.split("=====", maxsplit=1)[0]),  # nobody noticed
    ],
)
def test_a_planted_error_that_is_not_reported_as_such_ends_the_stage(
    monkeypatch: pytest.MonkeyPatch, status: int, output: str
) -> None:
    monkeypatch.setattr(stage, "start", Scripted(status, output))
    with pytest.raises(stage.StageError, match="not reported"):
        stage.find_planted(stage.SANITIZERS["tsan"], PROGRAM, "weak")


def test_a_planted_error_that_is_reported_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "start", Scripted(66, RACE))
    stage.find_planted(stage.SANITIZERS["tsan"], PROGRAM, "weak")


def test_an_error_on_purpose_that_nobody_described_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "start", Scripted(99, LEAK))
    with pytest.raises(stage.StageError, match="nobody says"):
        stage.find_planted(stage.SANITIZERS["asan"], PROGRAM, "new_kind_of_error")


def test_three_suppressions_at_most_each_with_its_reason_and_none_of_this_project() -> None:
    lines = stage.SUPPRESSIONS.read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert {lines[number] for number in rules} <= {"race:test::", "race:std::sync::mpmc", "race:core::profiling"}
    assert 0 < len(rules) <= 3
    assert all(lines[number - 1].startswith("# ") for number in rules)


def test_every_weakened_order_is_a_test_that_only_the_stage_runs() -> None:
    """An error on purpose that is not ignored would fail elsewhere; one that has another name would be missed."""
    sources = [*(ROOT / "rust/core/src/planted").glob("*.rs"), *(ROOT / "rust/planted/tests").glob("*.rs")]
    ignored, weak = set(), set()
    for path in sources:
        text = path.read_text()
        ignored |= set(re.findall(r'#\[ignore = "[^"]*on purpose[^"]*"\]\s+fn (\w+)', text))
        weak |= set(re.findall(r"fn (weak_\w+)\(\)", text))
    assert len(weak) >= 34
    assert ignored - weak == set(stage.SANITIZERS["asan"].words)
    assert weak <= ignored


def test_the_crate_of_errors_is_nobodys_dependency_but_for_tests() -> None:
    manifests = [path for path in ROOT.glob("rust/*/Cargo.toml") if path.parent.name != "planted"]
    users = 0
    for manifest in manifests:
        section = ""
        for line in manifest.read_text().splitlines():
            section = line if line.startswith("[") else section
            if line.startswith("shadow-mmu-planted"):
                users += 1
                assert "dev-dependencies" in section, f"{manifest}: {section}"
    assert users >= 1


def test_a_missing_runtime_of_gcc_is_told_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = in_python.INSIDE["tsan"]
    gcc = tmp_path / "gcc"
    gcc.write_text("#!/bin/sh\necho libtsan.so\n")  # what gcc says of a file that it does not have
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(stage.StageError, match="libtsan2"):
        in_python.runtime(inside)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(stage.StageError, match="gcc is needed"):
        in_python.runtime(inside)


def test_a_missing_symbolizer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(stage.StageError, match="llvm-symbolizer"):
        stage.symbolizer()
