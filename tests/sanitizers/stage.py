"""Run the Rust tests under a sanitizer: ``python tests/sanitizers/stage.py asan|tsan`` (``make asan``, ``make tsan``).

Two halves, and both must hold. The tests: all pass, no report. The errors on purpose: each is run alone, and must end in failure
with the report it was planted for, so that a sanitizer that sees nothing cannot pass. Uses nothing but the standard library.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[2]
SUPPRESSIONS = Path(__file__).with_name("tsan-suppressions.txt")
PACKAGES = ["shadow-mmu-sync", "shadow-mmu-sys", "shadow-mmu-planted", "shadow-mmu"]
TIMEOUT = 300
"""Seconds for one test program; the slowest takes a few."""

REPORT = re.compile(
    r"^(?:=+\d+=+)?(?:ERROR: (?:Address|Leak)Sanitizer|WARNING: ThreadSanitizer|FATAL: \w+Sanitizer)\b.*", re.MULTILINE
)
PASSED = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
RACE_ON_PLAIN_DATA = (
    r"WARNING: ThreadSanitizer: data race(?s:.*?)"
    r"(?:shadow_mmu_planted::Plain>?::|#\d+ )(?:read|write)\b[^\n]*planted/src/lib\.rs:"
)
"""One side of the race is `Plain::read` or `Plain::write`; some symbolizers name the function only."""


@dataclass(frozen=True)
class Sanitizer:
    """How one sanitizer is built in, run, and seen to work."""

    name: str
    rustflags: str
    options: dict[str, str]
    """The environment of the test programs: how the sanitizer's runtime behaves."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Test programs that are left out, and why."""
    skipped_tests: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of a test program: tests that are left out, and why."""
    doctests: bool = False
    """Whether the examples in the documentation are run as well."""
    planted: dict[str, str] = field(default_factory=dict)
    """For each test program with errors on purpose: the prefix of their names."""
    words: dict[str, str] = field(default_factory=dict)
    """What the report of a planted error must match, by its name; the empty name stands for all others."""


SANITIZERS = {
    "asan": Sanitizer(
        "asan",
        "-Zsanitizer=address",
        {
            # What cannot be had is an error that the tests expect, not an end of the process. A stack is checked after its return too.
            "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1:detect_stack_use_after_return=1:exitcode=99",
        },
        skipped={"switch_cost": "compares times"},
        doctests=True,
        planted={"memory": ""},
        words={
            "heap_use_after_free": r"ERROR: AddressSanitizer: heap-use-after-free",
            "heap_buffer_overflow": r"ERROR: AddressSanitizer: heap-buffer-overflow",
            "double_free": r"ERROR: AddressSanitizer: attempting double-free",
            "stack_buffer_overflow": r"ERROR: AddressSanitizer: stack-buffer-overflow",
            "leak": r"ERROR: LeakSanitizer: detected memory leaks(?s:.*)128 byte\(s\) leaked in 1 allocation",
        },
    ),
    "tsan": Sanitizer(
        "tsan",
        "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer",
        {"TSAN_OPTIONS": f"suppressions={SUPPRESSIONS}:exitcode=66:history_size=4"},
        skipped={"switch_cost": "compares times", "memory": "has no threads"},
        skipped_tests={
            "threads": {
                "e016_a_memslot_that_is_added_while_vcpus_run_is_there_for_all_of_them": (
                    "a slot is published by the standard library's OnceLock, whose store is not instrumented: a false report in one run of eight"
                ),
            },
        },
        planted={"shadow_mmu": "planted::", "locks": "weak_"},
        words={"": RACE_ON_PLAIN_DATA},
    ),
}


class StageError(Exception):
    """The stage failed, or cannot be run; the message says why."""


@dataclass(frozen=True)
class Program:
    """A test program that cargo built."""

    name: str
    path: Path
    directory: Path
    """Where cargo would start it."""


def reports(output: str) -> list[str]:
    """Return the first line of each report of a sanitizer."""
    return [match[0] for match in REPORT.finditer(output)]


def tests_passed(output: str) -> int:
    """Return how many tests a program says have passed; 0 if it does not say that all went well."""
    match = PASSED.search(output)
    return int(match[1]) if match and match[2] == "0" else 0


def programs(messages: str) -> Iterator[Program]:
    """Read cargo's messages in JSON: the test programs that it built."""
    for line in messages.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
            yield Program(message["target"]["name"], Path(message["executable"]), Path(message["manifest_path"]).parent)


def symbolizer() -> dict[str, str]:
    """Return the option that tells a runtime what turns addresses into names; suppressions go by names.

    Raises
    ------
    StageError
        If the machine has neither program.
    """
    if found := shutil.which("llvm-symbolizer"):
        return {"external_symbolizer_path": found}
    if found := shutil.which("addr2line"):
        return {"external_symbolizer_path": found, "allow_addr2line": "1"}
    raise StageError(
        "neither llvm-symbolizer (LLVM) nor addr2line (binutils) is on the PATH: a report would have no names"
    )


def environment_of(sanitizer: Sanitizer) -> dict[str, str]:
    """Return the environment of cargo and of the test programs."""
    options = {
        variable: ":".join([value, *(f"{key}={path}" for key, path in symbolizer().items())])
        for variable, value in sanitizer.options.items()
    }
    # The sanitizers of a stable compiler are there, but hidden.
    flags = {"RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": sanitizer.rustflags, "RUSTDOCFLAGS": sanitizer.rustflags}
    return os.environ | flags | options


def places(target_dir: Path) -> tuple[list[str], Path]:
    """Return cargo's arguments to build for the host in a folder of its own, and the folder of what is built.

    With ``--target`` the flags do not reach build scripts and procedural macros, which the compiler itself loads.
    """
    host = re.search(r"^host: (\S+)$", subprocess.check_output(["rustc", "-vV"], text=True), re.MULTILINE)
    if not host:
        raise StageError("`rustc -vV` names no host")
    arguments = ["--profile", "sanitize", "--target", host[1], "--target-dir", str(target_dir)]
    return arguments, target_dir / host[1] / "sanitize"


def cargo_test(target_dir: Path) -> list[str]:
    """Return the command that builds, and runs, the tests of our crates."""
    packages = [word for package in PACKAGES for word in ("--package", package)]
    return ["cargo", "test", *packages, *places(target_dir)[0]]


def build(sanitizer: Sanitizer, target_dir: Path) -> list[Program]:
    """Build the test programs."""
    command = [
        *cargo_test(target_dir),
        "--quiet",
        "--no-run",
        "--message-format=json-render-diagnostics",
        "--lib",
        "--tests",
    ]
    environment = environment_of(sanitizer)
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StageError("the tests do not build")
    return list(programs(done.stdout))


def start(sanitizer: Sanitizer, program: Program, *arguments: str) -> tuple[int, str]:
    """Run a test program; returns its exit status and all it printed."""
    environment = environment_of(sanitizer) | {"CARGO_MANIFEST_DIR": str(program.directory)}
    try:
        done = subprocess.run(
            [program.path, *arguments],
            cwd=program.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise StageError(f"{program.name} {' '.join(arguments)}: not done after {TIMEOUT} s") from late
    return done.returncode, done.stdout


def run_tests(sanitizer: Sanitizer, program: Program) -> int:
    """Run the tests of a program; returns how many there were.

    Raises
    ------
    StageError
        If one fails, or if the sanitizer has anything to say.
    """
    skips = [word for test in sanitizer.skipped_tests.get(program.name, {}) for word in ("--skip", test)]
    status, output = start(sanitizer, program, *skips)
    if status or reports(output) or not PASSED.search(output):
        print(output)
        raise StageError(f"{program.name}: exit status {status}, {len(reports(output))} reports")
    return tests_passed(output)


def run_doctests(sanitizer: Sanitizer, target_dir: Path) -> int:
    """Run the examples in the documentation; returns how many there were.

    Raises
    ------
    StageError
        As `run_tests`.
    """
    command = [*cargo_test(target_dir), "--doc"]
    environment = environment_of(sanitizer)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    found = sum(tests_passed(part) for part in done.stdout.split("Doc-tests ")[1:])
    if done.returncode or reports(done.stdout) or not found:
        print(done.stdout)
        raise StageError(
            f"examples: exit status {done.returncode}, {len(reports(done.stdout))} reports, {found} passed"
        )
    return found


def planted_tests(sanitizer: Sanitizer, program: Program) -> list[str]:
    """Return the names of the errors on purpose in a program."""
    _, output = start(sanitizer, program, "--list", "--ignored")
    names = re.findall(r"^(\S+): test$", output, re.MULTILINE)
    return [name for name in names if name.startswith(sanitizer.planted[program.name])]


def find_planted(sanitizer: Sanitizer, program: Program, name: str) -> None:
    """Run one error on purpose.

    Raises
    ------
    StageError
        If it is not reported as what it is.
    """
    status, output = start(sanitizer, program, "--ignored", "--exact", name)
    words = sanitizer.words.get(name) or sanitizer.words.get("")
    if words is None:
        raise StageError(f"{program.name}: nobody says what the report of {name} must be")
    require_report(program.name, name, words, status, output)


def require_report(where: str, name: str, words: str, status: int, output: str) -> None:
    """Look at what a run of an error on purpose came to.

    Raises
    ------
    StageError
        If it did not fail, or not with the report that has these words.
    """
    if not status or not reports(output) or not re.search(words, output):
        print(output)
        raise StageError(f"{where}: {name} was planted and not reported: exit status {status}, expected {words!r}")


def run(sanitizer: Sanitizer, target_dir: Path) -> str:
    """Run the stage; returns its closing line."""
    symbolizer()
    began = monotonic()
    built = build(sanitizer, target_dir)
    built_in = monotonic() - began
    tests = 0
    found: list[str] = []
    for program in built:
        if program.name in sanitizer.skipped:
            print(f"{program.name}: left out, it {sanitizer.skipped[program.name]}")
            continue
        count = run_tests(sanitizer, program)
        tests += count
        print(f"{program.name}: {count} tests, 0 reports")
        for test, why in sanitizer.skipped_tests.get(program.name, {}).items():
            print(f"{program.name}: {test} is left out: {why}")
    if sanitizer.doctests:
        count = run_doctests(sanitizer, target_dir)
        tests += count
        print(f"examples in the documentation: {count} tests, 0 reports")
    for program in built:
        if program.name in sanitizer.planted:
            names = planted_tests(sanitizer, program)
            for name in names:
                find_planted(sanitizer, program, name)
            found += names
            print(f"{program.name}: {len(names)} of {len(names)} planted errors reported")
    missing = set(sanitizer.words) - set(found) - {""}
    if not tests or not found or missing:
        raise StageError(
            f"{tests} tests, {len(found)} planted errors, {sorted(missing)} not there: the stage shows nothing"
        )
    took = f"built in {built_in:.0f} s, run in {monotonic() - began - built_in:.0f} s"
    return f"{sanitizer.name}: {tests} tests, 0 reports; {len(found)} of {len(found)} planted errors reported ({took})"


def main() -> int:
    """Read the command line and run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizer", choices=sorted(SANITIZERS))
    parser.add_argument("--target-dir", type=Path, help="cargo's folder for what is built (default: target/SANITIZER)")
    arguments = parser.parse_args()
    sanitizer = SANITIZERS[arguments.sanitizer]
    try:
        print(run(sanitizer, arguments.target_dir or ROOT / "target" / sanitizer.name))
    except StageError as error:
        print(f"{sanitizer.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
