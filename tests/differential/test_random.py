"""Core and model do the same on random streams; a planted difference is found and made small."""

import json
import os
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tests.differential.machines import IgnoresInvlpg, InvlpgKeepsTlb, planted

from shadow_mmu import ConfigError
from shadow_mmu.differential import (
    DEFAULT_STREAM,
    ModelSubject,
    NativeSubject,
    compare,
    dump_stream,
    hunt,
    load_stream,
    shrink,
)
from shadow_mmu.model.registers import PagingMode
from shadow_mmu.ops import Op
from shadow_mmu.policy import LINK_ORDERS
from shadow_mmu.types import OpKind, OutcomeCode
from shadow_mmu.workloads.random import random_stream
from shadow_mmu.workloads.world import MachineConfig

OPERATIONS = 20_000
SEED = 20260101
ACCESSES = (OpKind.READ, OpKind.WRITE, OpKind.FETCH, OpKind.LOAD, OpKind.STORE)
SOAK_OPERATIONS = 1_000_000
REGRESSIONS = Path(__file__).parent.parent / "regressions"


def test_core_and_model_agree_on_random_streams() -> None:
    found = hunt(OPERATIONS, seed=SEED)
    assert found is None, str(found)


@pytest.mark.soak
def test_core_and_model_agree_on_a_million_operations() -> None:
    found = hunt(SOAK_OPERATIONS, seed=int(os.environ.get("SHADOW_MMU_SEED", "1")))
    assert found is None, str(found)


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:0", "lru:3", "lru:16"])
def test_core_and_model_agree_under_each_policy_with_four_vcpus(policy: str) -> None:
    stream = random_stream(77, 1500, policy=policy, vcpus=4)
    found = compare(stream, NativeSubject, ModelSubject, audit_every=250, oracle=True)
    assert found is None, str(found)


@pytest.mark.parametrize("link", LINK_ORDERS)
@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_core_and_model_agree_under_each_link_policy(policy: str, link: str) -> None:
    for seed in range(3):
        stream = random_stream(seed, 1500, policy=f"{policy},link={link}", vcpus=4)
        found = compare(stream, NativeSubject, ModelSubject, audit_every=250, oracle=True)
        assert found is None, str(found)


@pytest.mark.parametrize("paging", ["PAE", "32-bit", "4-level"])
@pytest.mark.parametrize("policy", ["locked", "seed", "lru:0", "lru:1", "lru:3"])
def test_core_and_model_agree_where_roots_of_four_entries_are_cached(policy: str, paging: str) -> None:
    for seed in range(3):
        stream = random_stream(seed, 1500, policy=f"{policy},pae_roots=cached", vcpus=3, paging=paging)
        found = compare(stream, NativeSubject, ModelSubject, audit_every=100, oracle=not stream.mixes_widths)
        assert found is None, str(found)


@pytest.mark.parametrize("options", ["host=pae", "pae_roots=cached,host=pae"])
@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_core_and_model_agree_on_a_host_of_32_bits(policy: str, options: str) -> None:
    for seed in range(4):
        stream = random_stream(seed, 1500, policy=f"{policy},{options}", vcpus=2)
        found = compare(stream, NativeSubject, ModelSubject, audit_every=250, oracle=not stream.mixes_widths)
        assert found is None, str(found)


@pytest.mark.parametrize("paging", ["PAE", "32-bit"])
def test_e043_a_guest_without_long_mode_goes_through_the_same_states_on_both_hosts(paging: str) -> None:
    """The core on one host against the core on the other: operations that would lead into long mode are left out."""
    for seed in range(4):
        stream = random_stream(seed, 2000, policy="lru:3,pae_roots=cached", paging=paging)
        long_mode = {(OpKind.WRITE_EFER, 1 << 8), (OpKind.WRITE_CR4, 1 << 12)}
        kept = tuple(op for op in stream.ops if not any(op.kind == kind and op.addr & bit for kind, bit in long_mode))
        assert len(kept) > len(stream.ops) * 0.95
        # EFER differs from the start on: a vCPU of the other host has never had long mode.
        start = [Op(OpKind.WRITE_EFER, flags=8, vcpu=vcpu, addr=stream.config.cpu.nx << 11) for vcpu in range(2)]
        narrow = replace(stream, ops=(*start, *kept))
        small = replace(stream.config, policy=f"{stream.config.policy},host=pae")

        def other(_config: MachineConfig, config: MachineConfig = small) -> NativeSubject:
            return NativeSubject(config)

        found = compare(narrow, NativeSubject, other, every=2)
        assert found is None, str(found)


def test_streams_meet_what_they_are_for() -> None:
    """A stream that never syncs, floods or faults would agree about nothing."""
    totals: dict[str, int] = {}
    kinds: set[int] = set()
    for seed in range(6):
        stream = random_stream(seed, 2000)
        subject = NativeSubject(stream.config)
        assert compare(stream, partial(_given, subject), ModelSubject, every=2000) is None
        for name, count in subject.vm.stats()["counters"].items():
            totals[name] = totals.get(name, 0) + count
        kinds |= {op.kind for op in stream.ops}
    assert kinds == set(map(int, OpKind))
    never = {"mmu_recycled", "remote_tlb_flush"}  # 1,000 aliases of one page; a second thread
    assert {name for name, count in totals.items() if count == 0} <= never
    assert totals["pf_fixed"] > 500
    assert totals["mmu_flooded"] > 50


def test_streams_change_between_all_modes() -> None:
    """From each mode to each other, and what is done there: accesses that arrive and accesses that fault."""
    changes: set[tuple[PagingMode, PagingMode]] = set()
    ends: Counter[tuple[PagingMode, int]] = Counter()
    # The rarest is from 5 levels to 32-bit paging: three times the streams of one run.
    for seed in range(SEED, SEED + 3 * OPERATIONS // DEFAULT_STREAM):
        stream = random_stream(seed, DEFAULT_STREAM)
        machine = ModelSubject(stream.config)
        pages = np.array(stream.pages, "<u8").reshape(-1, 512)
        vcpus = machine.machine.vm.vcpus
        before = [vcpu.registers.mode for vcpu in vcpus]
        for op in stream.ops:
            result = machine.execute(op, pages)
            mode = vcpus[op.vcpu].registers.mode
            if op.kind in ACCESSES and not isinstance(result, str):
                # A mode that is passed through is none that was changed to.
                changes.add((before[op.vcpu], mode))
                before[op.vcpu] = mode
                ends[mode, result[0]] += 1
    assert {pair for pair in product(PagingMode, repeat=2) if pair not in changes} == set()
    assert min(ends[mode, OutcomeCode.OK] for mode in PagingMode) > 300
    assert min(ends[mode, OutcomeCode.PAGE_FAULT] for mode in PagingMode if mode is not PagingMode.NONE) > 300
    assert ends[PagingMode.NONE, OutcomeCode.PAGE_FAULT] == 0


def _given(subject: NativeSubject, _config: MachineConfig) -> NativeSubject:
    return subject


@pytest.mark.parametrize(("kind", "at_most"), [(IgnoresInvlpg, 1), (InvlpgKeepsTlb, 8)])
@pytest.mark.parametrize("other", [NativeSubject, ModelSubject], ids=["core", "model"])
def test_a_planted_difference_is_found_and_shrunk_to_a_few_operations(
    kind: type[IgnoresInvlpg] | type[InvlpgKeepsTlb], at_most: int, other: type[NativeSubject] | type[ModelSubject]
) -> None:
    found = hunt(OPERATIONS, left=planted(kind), right=other)
    assert found is not None
    assert len(found.stream.ops) <= at_most, str(found)
    assert found.stream.ops[-1].kind == OpKind.INVLPG
    # What is left still differs with the plant, and does not without.
    assert compare(found.stream, planted(kind), other) == found.divergence
    assert compare(found.stream, ModelSubject, other) is None
    assert "INVLPG" in str(found)


def test_the_oracle_alone_finds_a_translation_that_outlived_its_invlpg() -> None:
    """Two machines with the same defect agree; D.5 does not."""
    found = hunt(OPERATIONS, seed=20, left=planted(InvlpgKeepsTlb), right=planted(InvlpgKeepsTlb))
    assert found is not None
    assert found.divergence.what == "oracle"
    assert {OpKind.INVLPG, OpKind.STORE} <= {op.kind for op in found.stream.ops} | {OpKind.STORE}
    assert len(found.stream.ops) < 20


def test_a_small_stream_survives_writing_and_reading(tmp_path: Path) -> None:
    stream = random_stream(3, 300)
    path = tmp_path / "stream.json"
    path.write_text(dump_stream(stream, "nothing"))
    again = load_stream(path)
    assert again.config == stream.config
    assert again.ops == stream.ops
    assert again.pages == stream.pages
    assert json.loads(path.read_text())["found"] == "nothing"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"config": {}, "ops": [["FLY"]], "pages": []}', '{"config": 5}'])
def test_a_file_that_is_no_stream_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not a stream"):
        load_stream(path)


def test_what_does_not_diverge_cannot_be_shrunk() -> None:
    stream = random_stream(1, 50)
    with pytest.raises(ConfigError, match="does not diverge"):
        shrink(stream, lambda one: compare(one, ModelSubject, ModelSubject))
    with pytest.raises(ConfigError, match="0 operations"):
        random_stream(1, 0)


def test_shrinking_keeps_only_the_pages_that_are_used() -> None:
    stream = random_stream(1, 200)
    last_page = max(index for index, op in enumerate(stream.ops) if op.kind == OpKind.HOST_PAGE)
    wanted = stream.ops[last_page]

    def diverges(one: object) -> object:
        ops = one.ops  # type: ignore[attr-defined]
        return replace(compare_result, index=ops.index(wanted)) if wanted in ops else None

    compare_result = hunt(2000, left=planted(IgnoresInvlpg), right=ModelSubject).divergence  # type: ignore[union-attr]
    small = shrink(stream, diverges)  # type: ignore[arg-type]
    assert small.ops == (Op(OpKind.HOST_PAGE, vcpu=wanted.vcpu, addr=wanted.addr),)
    assert small.pages == (stream.pages[wanted.aux],)


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.json")), ids=lambda path: path.stem)
def test_regressions_stay_fixed(path: Path) -> None:
    found = compare(load_stream(path), NativeSubject, ModelSubject, audit_every=1, oracle=True)
    assert found is None, str(found)
