"""Run tests of the Python API under a sanitizer: ``python -m tests.sanitizers.in_python asan|tsan`` (``make asan-python``).

The interpreter is the ordinary one. The native module is built with the sanitizer and lies in a copy of the package; gcc's runtime is
loaded before everything else, for the compiler's own is made for programs only. An error on purpose, called from Python, must be reported first.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sanitizers import stage

TIMEOUT = 3600
"""Seconds for the tests; ThreadSanitizer needs a few minutes."""
TESTS = ["tests/api", "tests/behaviour/test_threads.py"]


@dataclass(frozen=True)
class Inside:
    """What a sanitizer needs inside Python."""

    runtime: str
    """gcc's library."""
    package: str
    """Debian's package of it."""
    environment: dict[str, str]
    options: str
    planted: str
    """The function of rust/planted/examples/in_python.rs that must be reported."""
    words: str


INSIDE = {
    "asan": Inside(
        "libasan.so",
        "libasan8",
        # The interpreter's own allocator would hide its blocks; what the interpreter never gives back is no leak of ours.
        {"PYTHONMALLOC": "malloc"},
        "ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:exitcode=99",
        "heap_use_after_free",
        r"ERROR: AddressSanitizer: heap-use-after-free",
    ),
    "tsan": Inside(
        "libtsan.so",
        "libtsan2",
        {},
        "TSAN_OPTIONS=allocator_may_return_null=1:exitcode=66",
        "race",
        stage.RACE_ON_PLAIN_DATA,
    ),
}


def runtime(inside: Inside) -> Path:
    """Return where gcc keeps its runtime.

    Raises
    ------
    StageError
        If there is no gcc, or it has no such runtime.
    """
    if not shutil.which("gcc"):
        raise stage.StageError("gcc is needed for its runtime of the sanitizer; it is not on the PATH")
    found = Path(subprocess.check_output(["gcc", f"-print-file-name={inside.runtime}"], text=True).strip())
    if not found.is_absolute() or not found.exists():
        raise stage.StageError(f"gcc has no {inside.runtime}: install its runtime (Debian: {inside.package})")
    return found


def build(sanitizer: stage.Sanitizer, target_dir: Path, place: Path) -> tuple[Path, list[Path]]:
    """Build the native module and the errors; returns the library of errors and what must be loaded beside the runtime.

    ``place`` becomes a folder for ``PYTHONPATH``: a copy of the package with the native module in it.
    """
    places, built = stage.places(target_dir)
    for what in (["--package", "shadow-mmu-py"], ["--package", "shadow-mmu-planted", "--example", "in_python"]):
        command = ["cargo", "build", "--quiet", *what, *places]
        if subprocess.run(command, cwd=stage.ROOT, env=stage.environment_of(sanitizer), check=False).returncode:
            raise stage.StageError(f"`{' '.join(command)}` failed")
    shutil.rmtree(place, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(stage.ROOT / "python/shadow_mmu", place / "shadow_mmu", ignore=ignored)
    shutil.copy(built / "lib_native.so", place / "shadow_mmu/_native.abi3.so")
    beside = []
    if sanitizer.name == "tsan":
        shim = place / "tsan_shim.so"
        source = stage.ROOT / "tests/sanitizers/tsan_shim.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-fno-builtin", "-o", shim, source], check=True)
        beside = [shim]
    return built / "examples/libin_python.so", beside


class Python:
    """The interpreter under the sanitizer."""

    def __init__(self, inside: Inside, preloaded: Sequence[Path], place: Path) -> None:
        variable, options = inside.options.split("=", 1)
        named = ":".join([options, *(f"{key}={value}" for key, value in stage.symbolizer().items())])
        paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | inside.environment | {variable: named, "PYTHONPATH": os.pathsep.join(paths)}
        self.environment["LD_PRELOAD"] = " ".join(map(str, preloaded))

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the interpreter; returns its exit status and all it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=stage.ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
        return done.returncode, done.stdout


def run(name: str, target_dir: Path, tests: Sequence[str]) -> str:
    """Run the planted error, then the tests; returns the closing line."""
    inside = INSIDE[name]
    library = runtime(inside)
    place = target_dir / "python"
    planted, beside = build(stage.SANITIZERS[name], target_dir, place)
    python = Python(inside, [library, *beside], place)
    status, output = python.run(
        "-c", "import sys, ctypes; ctypes.CDLL(sys.argv[1])[sys.argv[2]]()", str(planted), inside.planted
    )
    stage.require_report(f"{name} in Python", inside.planted, inside.words, status, output)
    status, output = python.run("-c", "from shadow_mmu import _native; print(_native.__file__)")
    if Path(output.strip()).parent != place / "shadow_mmu":
        raise stage.StageError(f"the tests would not use the module that was built for them, but: {output}")
    status, output = python.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    print(output)
    if status or stage.reports(output):
        raise stage.StageError(f"exit status {status}, {len(stage.reports(output))} reports")
    return f"{name} in Python: 0 reports; 1 of 1 planted errors reported"


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizer", choices=sorted(INSIDE))
    parser.add_argument("tests", nargs="*", default=TESTS, help="for pytest (default: %(default)s)")
    parser.add_argument("--target-dir", type=Path, help="cargo's folder for what is built (default: target/SANITIZER)")
    arguments = parser.parse_intermixed_args()
    name = arguments.sanitizer
    try:
        print(run(name, (arguments.target_dir or stage.ROOT / "target" / name).absolute(), arguments.tests))
    except stage.StageError as error:
        print(f"{name} in Python: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
