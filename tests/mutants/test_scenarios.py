"""Each mutant is noticed by its scenario, for the stated reason; the machine as it is passes them all, with a clean audit."""

from types import ModuleType

import pytest
from tests.behaviour import machines
from tests.behaviour.guest import GuestMaker
from tests.mutants.scenarios import SCENARIOS

from shadow_mmu.errors import ConfigError
from shadow_mmu.workloads.world import MachineConfig

NAMES = sorted(SCENARIOS)


def test_every_mutant_of_the_build_has_a_scenario(mutant_names: list[str]) -> None:
    assert set(mutant_names) == SCENARIOS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_e162_the_scenario_holds_on_the_normal_build_and_leaves_a_clean_audit(name: str) -> None:
    from shadow_mmu import _native

    scenario = SCENARIOS[name]
    scenario.run(scenario, GuestMaker(machines.native(_native))).audit()


@pytest.mark.parametrize("name", NAMES)
def test_e162_the_scenario_holds_on_the_model_and_leaves_a_clean_audit(name: str) -> None:
    scenario = SCENARIOS[name]
    scenario.run(scenario, GuestMaker(machines.model)).audit()


@pytest.mark.parametrize("name", NAMES)
def test_the_scenario_holds_on_the_test_build_with_nothing_switched_off(name: str, mutant_build: ModuleType) -> None:
    scenario = SCENARIOS[name]
    scenario.run(scenario, GuestMaker(machines.native(mutant_build, "none"))).audit()


@pytest.mark.parametrize("name", NAMES)
def test_the_scenario_fails_under_its_mutant_for_the_stated_reason(name: str, mutant_build: ModuleType) -> None:
    scenario = SCENARIOS[name]
    with pytest.raises(AssertionError) as failure:
        scenario.run(scenario, GuestMaker(machines.native(mutant_build, name)))
    assert str(failure.value) == scenario.reason


@pytest.mark.parametrize("name", ["child-reuse-ignores-gfn", "child-reuse-ignores-role"])
def test_with_untracked_host_writes_alone_the_check_of_the_child_protects(name: str, mutant_build: ModuleType) -> None:
    """These mutants switch off two rules at once, for the guest's tables must change unseen; this one is the control."""
    scenario = SCENARIOS[name]
    scenario.run(scenario, GuestMaker(machines.native(mutant_build, "host-write-untracked")))


def test_the_table_of_mutants_and_the_scenarios_that_notice_them(mutant_build: ModuleType) -> None:
    """Print which other scenarios notice a mutant too; each must be noticed by its own at least."""
    table = {}
    for mutant in NAMES:
        noticed = []
        for name, scenario in SCENARIOS.items():
            try:
                scenario.run(scenario, GuestMaker(machines.native(mutant_build, mutant)))
            except AssertionError:
                noticed.append(name)
        table[mutant] = noticed
        print(f"{mutant:28} {SCENARIOS[mutant].ids:16} {', '.join(noticed)}")
    assert [mutant for mutant, noticed in table.items() if mutant not in noticed] == []


def test_the_normal_build_refuses_every_mutant(mutant_names: list[str]) -> None:
    from shadow_mmu import _native

    config = MachineConfig("lru:3", slots=((0, 0x1000, False),))
    for name in mutant_names:
        with pytest.raises(ConfigError, match="this build has no mutants"):
            machines.NativeMachine(_native, config, name)
