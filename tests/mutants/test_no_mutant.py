"""The test build with nothing switched off is the core that ships."""

from types import ModuleType

import pytest

import shadow_mmu
from shadow_mmu.differential import ModelSubject, NativeSubject, compare
from shadow_mmu.workloads.random import random_stream


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_without_a_mutant_the_test_build_does_what_the_model_does(
    policy: str, mutant_build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_mmu, "_native", mutant_build, raising=False)
    for seed in range(4):
        found = compare(random_stream(seed, 1500, policy=policy), NativeSubject, ModelSubject, audit_every=500)
        assert found is None, str(found)
