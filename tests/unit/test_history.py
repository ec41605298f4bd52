"""The exact rule of D.5, on histories made by hand: which stale translations are legal and which are bugs."""

from itertools import count

import numpy as np
import pytest

from shadow_mmu import ops
from shadow_mmu.history import History, split_legal
from shadow_mmu.ops import Op, program
from shadow_mmu.types import OpKind

ROOT, PDPT, PD, PT, OTHER_PT, A, B, C = (0x1000 * n for n in range(1, 9))
GVA = 0x40_0000
PWU, NX = 7, 1 << 63
# PD index 2, PT index 0.
TABLES = [(ROOT, PDPT | PWU), (PDPT, PD | PWU), (PD + 16, PT | PWU), (PT, A | PWU), (OTHER_PT, C | PWU)]
SETUP = [*(ops.host_store(gpa, word) for gpa, word in TABLES), ops.write_cr3(ROOT)]
READ = ops.access(GVA + 0x123, expect=0)


def edit(gpa: int, word: int, *, vcpu: int = 1) -> Op:
    """A guest store; ``expect`` says where it goes, as in a recording."""
    return ops.store(0xDEAD000, word, vcpu=vcpu)._replace(expect=gpa)


def legal(*then: Op, reached: int, read: Op = READ, setup: list[Op] = SETUP, faults: tuple[int, ...] = ()) -> bool:
    found = program([*setup, *then, read])
    return History(found, ops.NO_PAGES, faults).is_legal(len(found) - 1, reached + 0x123)


def test_the_current_translation_is_legal_and_another_frame_is_not() -> None:
    assert legal(reached=A)
    assert not legal(reached=B)
    # The offset in the page counts too.
    found = program([*SETUP, READ])
    assert not History(found, ops.NO_PAGES).is_legal(len(found) - 1, A + 0x124)


def test_the_former_value_of_a_changed_entry_is_legal_until_invlpg_of_that_page() -> None:
    change = edit(PT, B | PWU)
    assert legal(change, reached=A)
    assert legal(change, reached=B)
    assert not legal(change, ops.invlpg(GVA), reached=A)
    assert legal(change, ops.invlpg(GVA + 0x1000), reached=A)  # another page
    assert legal(change, ops.invlpg(GVA, vcpu=1), reached=A)  # another vCPU


@pytest.mark.parametrize(
    "flush", [ops.write_cr3(ROOT), ops.write_cr0(0x80050033), ops.write_cr4(0x20), ops.write_efer(0xD00)]
)
def test_register_writes_invalidate_everything_of_their_vcpu(flush: Op) -> None:
    change = edit(PT, B | PWU)
    assert not legal(change, flush, reached=A)
    assert legal(change, flush._replace(vcpu=1), reached=A)


def test_an_injected_page_fault_evicts_its_page() -> None:
    change = edit(PT, B | PWU)
    fault = ops.access(GVA, user=True)
    place = len(SETUP) + 1
    assert legal(change, fault, reached=A)
    assert not legal(change, fault, reached=A, faults=(place,))


def test_a_changed_word_on_the_path_that_does_not_lead_to_the_reached_gpa_is_a_mismatch() -> None:
    """Some word on the path changed: too loose a rule would call any gpa stale."""
    assert not legal(edit(PT, B | PWU), reached=C)
    assert not legal(edit(PT + 8, C | PWU), reached=C)  # the neighbouring entry
    assert not legal(edit(PD + 16, PT | PWU | 0x60), reached=B)  # the accessed and dirty bits only


def test_levels_may_come_from_different_instants() -> None:
    """The page directory went from PT to OTHER_PT and back while OTHER_PT changed: A, C, and what it held since."""
    moves = [edit(PD + 16, OTHER_PT | PWU), edit(OTHER_PT, B | PWU), edit(PD + 16, PT | PWU)]
    for reached in (A, B, C):
        assert legal(*moves, reached=reached)
    assert not legal(*moves, ops.invlpg(GVA), reached=B)


def test_a_value_that_was_gone_before_the_invalidation_is_no_candidate() -> None:
    assert not legal(edit(PT, B | PWU), edit(PT, C | PWU), ops.invlpg(GVA), edit(PT, A | PWU), reached=B)
    assert legal(edit(PT, B | PWU), edit(PT, C | PWU), ops.invlpg(GVA), edit(PT, A | PWU), reached=C)


def test_a_stale_translation_must_permit_the_access() -> None:
    read_only, write = edit(PT, A | 5), READ._replace(kind=OpKind.WRITE)
    user, fetch = READ._replace(flags=1), READ._replace(kind=OpKind.FETCH)
    invlpg = ops.invlpg(GVA)
    assert legal(read_only, read=write, reached=A)  # the former value has W
    assert not legal(read_only, invlpg, read=write, reached=A)
    assert legal(read_only, invlpg, reached=A)
    assert not legal(edit(PT, A | 3), invlpg, read=user, reached=A)
    assert not legal(edit(PDPT, PD | 3), invlpg, read=user, reached=A)  # rights of upper levels count
    assert not legal(edit(PT, A | PWU | NX), invlpg, read=fetch, reached=A)
    assert not legal(edit(PT, 0), invlpg, reached=A)
    assert not legal(edit(PT, A | PWU | 1 << 50), invlpg, reached=A)  # reserved


def test_control_registers_decide_what_supervisor_accesses_may_do() -> None:
    read_only = edit(PT, A | 5)
    write = READ._replace(kind=OpKind.WRITE)
    fetch = READ._replace(kind=OpKind.FETCH)
    assert not legal(read_only, ops.write_cr3(ROOT), read=write, reached=A)
    assert legal(read_only, ops.write_cr0(0x80040033), read=write, reached=A)  # WP = 0
    assert not legal(ops.write_cr4(1 << 20 | 0x20), read=fetch, reached=A)  # SMEP
    assert not legal(ops.write_cr4(1 << 21 | 0x20), reached=A)  # SMAP, AC = 0
    assert legal(ops.write_cr4(1 << 21 | 0x20), read=READ._replace(flags=2), reached=A)
    assert not legal(ops.write_efer(0x500), edit(PT, A | PWU | NX), ops.invlpg(GVA), reached=A)  # NX is reserved


@pytest.mark.parametrize(("level", "place", "span"), [(2, PD + 16, 1 << 21), (3, PDPT, 1 << 30)])
def test_large_pages_reach_by_their_offset(level: int, place: int, span: int) -> None:
    frame = 1 << 32
    offset = GVA & (span - 1)
    assert legal(edit(place, frame | PWU | 0x80), reached=frame + offset)
    assert legal(edit(place, frame | PWU | 0x80), reached=A)
    assert not legal(edit(place, frame | PWU | 0x80), ops.invlpg(GVA), reached=A)
    assert not legal(edit(place, frame | PWU | 0x80 | 1 << 13), ops.invlpg(GVA), reached=frame + offset), level


def test_five_levels_walk_one_table_more() -> None:
    top = 0x9000
    setup = [*SETUP[:-1], ops.host_store(top, ROOT | PWU), ops.write_cr4(0x1020), ops.write_cr3(top)]
    assert legal(reached=A, setup=setup)
    assert not legal(reached=A, setup=[*setup[:-1], ops.write_cr3(ROOT)])


def narrow(cr4: int) -> list[Op]:
    """The register writes of a guest without long mode."""
    return [ops.write_cr4(cr4, host=True), ops.write_efer(0x800, host=True)]


def test_pae_starts_from_the_pdptr_that_cr3_loaded() -> None:
    tables = [ops.host_store(ROOT, PD | 1), ops.host_store(PD + 16, PT | PWU), ops.host_store(PT, A | PWU)]
    setup = [*narrow(0x20), *tables, ops.write_cr3(ROOT)]
    assert legal(reached=A, setup=setup)
    assert legal(edit(ROOT, 0), ops.invlpg(GVA), reached=A, setup=setup), "an edit of a PDPTE is not seen"
    assert not legal(edit(ROOT, 0), ops.write_cr3(ROOT), reached=A, setup=setup)
    assert not legal(edit(PT, A | PWU | 1 << 60), ops.invlpg(GVA), reached=A, setup=setup), "reserved under PAE"


def test_32_bit_tables_have_entries_of_4_bytes_and_pages_of_4_mib_by_pse() -> None:
    # Directory entry 1 is the upper half of the first word.
    setup = [*narrow(0x10), ops.host_store(ROOT, (PT | PWU) << 32), ops.host_store(PT, A | PWU), ops.write_cr3(ROOT)]
    assert legal(reached=A, setup=setup)
    large = 0x80_0000 | 3 << 13 | 0x80 | PWU
    assert legal(edit(ROOT, large << 32), reached=A, setup=setup)
    assert legal(edit(ROOT, large << 32), ops.invlpg(GVA), reached=3 << 32 | 0x80_0000, setup=setup)
    assert not legal(edit(ROOT, (large | 1 << 17) << 32), ops.invlpg(GVA), reached=3 << 32 | 0x80_0000, setup=setup)
    plain = [*narrow(0), *setup[2:]]
    assert legal(edit(ROOT, (PT | PWU | 0x80) << 32), ops.invlpg(GVA), reached=A, setup=plain), "no PSE, no large page"


def test_page_arrivals_are_history_too() -> None:
    page = np.zeros((2, 512), "<u8")
    page[0, 0], page[1, 0] = A | PWU, B | PWU
    operations = [*SETUP[:3], ops.host_page(PT, 0), ops.write_cr3(ROOT), ops.host_page(PT, 1), READ]
    history = History(program(operations), page)
    last = len(operations) - 1
    assert history.is_legal(last, A + 0x123)
    assert history.is_legal(last, B + 0x123)
    assert not history.is_legal(last, C + 0x123)
    assert history.values(PT, last - 1, last) == {B | PWU}


def test_a_recorded_gpa_that_the_tables_do_not_give_is_never_staleness() -> None:
    """The machine reached what it should: the recording is altered, and that is a mismatch."""
    operations = [*SETUP, edit(PT, B | PWU), READ]
    found = program(operations)
    last = len(found) - 1
    number = count()
    cases = {
        next(number): (last, A + 0x123, B + 0x123),  # stale, recorded is current: legal
        next(number): (last, B + 0x123, A + 0x123),  # current, recorded is not: wrong
        next(number): (last, B + 0x123, C + 0x123),
        next(number): (last, C + 0x123, B + 0x123),
    }
    assert split_legal(found, ops.NO_PAGES, list(cases.values())) == ([0], [1, 2, 3])
