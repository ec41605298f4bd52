"""Rows 21 and 22, and the replay: what the package costs to import and to ship, and how long a recorded guest takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benches.conftest import Collect

from shadow_mmu import load_recording, replay_recording

ROOT = Path(__file__).resolve().parents[1]
RECORDING = ROOT / "recordings" / "linux61-4level-kpti-small.npz"
ACCESSES = 399_490
# User and system time of a Python that runs this and nothing else, and whether numpy was loaded.
COST = """import resource, sys{modules}
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime, 'numpy' in sys.modules)"""


def cpu_ms(modules: str = "") -> float:
    """Return the CPU milliseconds of a fresh Python that imports these modules, and check that numpy was not among them."""
    code = COST.format(modules=modules and f", {modules}")
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    seconds, numpy = done.stdout.split()
    assert numpy == "False"
    return float(seconds) * 1e3


def test_import(collect: Collect) -> None:
    cpu_ms("shadow_mmu")  # compiles what is not compiled yet
    # Both in each round, so that a busy machine disturbs both.
    collect("import", lambda: cpu_ms("shadow_mmu") - cpu_ms())


def test_import_with_the_machine(collect: Collect) -> None:
    def ms() -> float:
        code = COST.format(modules="\nfrom shadow_mmu import Vm")
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[0]) * 1e3 - cpu_ms()

    collect("import Vm", ms)


def test_wheel_size(collect: Collect) -> None:
    wheels = sorted(Path(os.environ.get("BENCH_WHEELS", ROOT / "build/wheels")).glob("*.whl"))
    if not wheels:
        pytest.skip("no wheel was built")
    collect("wheel", lambda: wheels[-1].stat().st_size / 1e6)


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_replay(policy: str, collect: Collect) -> None:
    recording = load_recording(RECORDING)

    def seconds() -> float:
        report = replay_recording(recording, [policy])
        result = report.results[0]
        assert report.ok
        assert result.accesses_checked == ACCESSES
        return result.seconds

    collect(f"replay {policy}", seconds)
