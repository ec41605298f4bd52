"""Importing the package costs nothing; names come when they are used."""

import subprocess
import sys

import pytest

import shadow_mmu
from shadow_mmu import errors

HEAVY = ("numpy", "click", "rich", "dataclasses", "typing", "shadow_mmu._native", "shadow_mmu.vm", "shadow_mmu.model")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    # Whatever the start of the interpreter loaded already counts as not loaded.
    forget = f"import sys; heavy = {HEAVY!r}; [sys.modules.pop(name, None) for name in heavy]"
    loaded = run(f"{forget}; import shadow_mmu; print(set(heavy) & set(sys.modules))")
    assert loaded == "set()"


def test_importing_takes_at_most_15_ms() -> None:
    code = "import time; t = time.perf_counter(); import shadow_mmu; print(time.perf_counter() - t)"
    # The best of five: the first reads the files from disk.
    assert min(float(run(code)) for _ in range(5)) <= 0.015


def test_errors_and_policies_need_no_numpy() -> None:
    code = "import sys, shadow_mmu as s; s.Policy.parse('seed'), s.PageFault(1, 2), s.Memslot(0, 4096); print('numpy' in sys.modules)"
    assert run(code) == "False"


def test_the_model_needs_no_numpy_and_no_core() -> None:
    code = "import sys, shadow_mmu.model; print({'numpy', 'shadow_mmu._native'} & set(sys.modules))"
    assert run(code) == "set()"


def test_memory_dumps_need_no_core() -> None:
    assert run("import sys, shadow_mmu; shadow_mmu.open_dump; print('shadow_mmu._native' in sys.modules)") == "False"


@pytest.mark.parametrize("name", shadow_mmu.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(shadow_mmu, name) is not None
    assert name in dir(shadow_mmu)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Vmm'"):
        shadow_mmu.Vmm  # noqa: B018  the access is the test


def test_every_error_is_public_by_both_ways() -> None:
    kinds = {name for name, one in vars(errors).items() if isinstance(one, type) and one.__module__ == errors.__name__}
    assert "InvalidOpcode" in kinds
    assert set(errors.__all__) == kinds
    assert kinds <= set(shadow_mmu.__all__)


def test_public_names_are_sorted_once_each() -> None:
    assert sorted(set(shadow_mmu.__all__)) == sorted(shadow_mmu.__all__)
