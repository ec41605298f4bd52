"""The test build of the core, in which single rules can be switched off, beside the normal one."""

import re
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from shadow_mmu.cpu import DEFAULT_CPU

BUILD = Path(__file__).parents[2] / "build" / "mutants" / "_native.abi3.so"


@pytest.fixture(scope="session")
def mutant_build() -> ModuleType:
    """Load the test build; it lives beside the normal module and replaces nothing."""
    if not BUILD.is_file():
        pytest.fail(f"{BUILD} is missing: run `make mutants`")
    name = "mutants._native"
    spec = spec_from_file_location(name, BUILD, loader=ExtensionFileLoader(name, str(BUILD)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mutant_names(mutant_build: ModuleType) -> list[str]:
    """Return the name of every mutant, as the build itself lists them when it is asked for another."""
    from shadow_mmu.errors import ConfigError

    with pytest.raises(ConfigError, match="expected") as refused:
        mutant_build.Vm(
            slots=[(0, 4096, False)],
            vcpus=1,
            policy="seed",
            tlb_entries=0,
            cpu=DEFAULT_CPU,
            trace=False,
            lock_times=False,
            cr3_times=False,
            mutant="?",
        )
    names = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", str(refused.value).partition("expected")[2])
    assert len(names) > 10
    return names
