"""Core and model tell the same way through the shadow tables, in every mode, and looking changes nothing."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from shadow_mmu import ConfigError
from shadow_mmu.differential import ModelSubject, NativeSubject
from shadow_mmu.model.constants import DUMMY_ROOT, INVALID_ROOT
from shadow_mmu.model.registers import PagingMode, Registers
from shadow_mmu.types import OpKind
from shadow_mmu.workloads.random import Stream, random_stream
from shadow_mmu.workloads.world import PAGINGS, SLOTS, MachineConfig

STREAMS, LENGTH, EVERY = 4, 800, 19
ADDRESSED = {OpKind.READ, OpKind.WRITE, OpKind.FETCH, OpKind.LOAD, OpKind.STORE, OpKind.INVLPG}
SPECIAL = {INVALID_ROOT: "no root", DUMMY_ROOT: "dummy root"}


def met(path: dict[str, Any]) -> list[str]:
    """Say in words what a path shows."""
    found = [SPECIAL.get(path["root"], "a root" if path["entries"] is None else "PAE root")]
    if path["entries"] is not None and not path["steps"]:
        found.append("no page for the GiB")
    if path["steps"]:
        _, _, role, _, spte, *_ = path["steps"][-1]
        found.append(f"leaf at level {role & 15}" if spte else f"nothing at level {role & 15}")
        if any(step[5] for step in path["steps"]):
            found.append("unsync")
        if any(step[7] for step in path["steps"]):
            found.append("marked")
    return found + ["TLB"] * (path["tlb"] is not None) + ["requests"] * bool(path["requests"])


def test_core_and_model_tell_the_same_way() -> None:
    seen, modes = look(
        [random_stream(4100 + seed, LENGTH, paging=paging) for seed in range(STREAMS) for paging in sorted(PAGINGS)]
    )
    assert modes == set(PagingMode)
    wanted = {
        "no root",
        "dummy root",
        "PAE root",
        "a root",
        "no page for the GiB",
        "unsync",
        "marked",
        "TLB",
        "requests",
    }
    wanted |= {
        f"{what} at level {level}" for what, level in (("leaf", 1), *(("nothing", level) for level in range(1, 6)))
    }
    assert wanted <= set(seen), seen


def test_core_and_model_tell_the_same_way_of_a_gpa_in_two_dimensions() -> None:
    """§15: the direct tables translate gpas, 48 bits of them."""
    seen, modes = look(
        [random_stream(4200 + seed, LENGTH, policy="lru:3,mmu=tdp") for seed in range(4)], (0x80000, 1 << 48)
    )
    assert len(modes) > 2
    assert {"no root", "a root", "leaf at level 1", "nothing at level 1", "TLB"} <= set(seen), seen
    assert "PAE root" not in seen


def look(streams: list[Stream], more: tuple[int, ...] = ()) -> tuple[Counter[str], set[PagingMode]]:
    """Run streams on both machines and compare what they tell; returns what was met."""
    seen: Counter[str] = Counter()
    modes: set[PagingMode] = set()
    for stream in streams:
        core, model = NativeSubject(stream.config), ModelSubject(stream.config)
        pages = np.array(stream.pages, np.dtype("<u8")).reshape(-1, 512)
        recent = [0, 1 << 46, 1 << 62]
        for number, one in enumerate(stream.ops):
            assert core.execute(one, pages) == model.execute(one, pages)
            if one.kind in ADDRESSED:
                recent = [*recent[-5:], one.addr]
            # A dummy root lives from an access to the next CR3 write, which is soon.
            after_switch = number > 0 and stream.ops[number - 1].kind == OpKind.WRITE_CR3
            if number % EVERY and not after_switch:
                continue
            before = core.state_words(), model.state_words()
            for vcpu in range(stream.config.vcpus):
                for gva in (*recent, *more):
                    path = core.vm.shadow_path(vcpu, gva)
                    assert path == model.machine.shadow_path(vcpu, gva), f"{stream.config} op {number} gva {gva:#x}"
                    seen.update(met(path))
                    modes.add(Registers(*path["registers"]).mode)
            assert (core.state_words(), model.state_words()) == before
    return seen, modes


@pytest.mark.parametrize("kind", [NativeSubject, ModelSubject])
def test_a_vcpu_that_is_not_there_is_refused(kind: type[NativeSubject] | type[ModelSubject]) -> None:
    subject = kind(MachineConfig("lru:3", vcpus=2, slots=SLOTS))
    machine = subject.vm if isinstance(subject, NativeSubject) else subject.machine
    for vcpu in (2, 1 << 40):
        with pytest.raises(ConfigError, match=f"{vcpu}"):
            machine.shadow_path(vcpu, 0)
