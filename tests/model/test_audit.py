"""The audit finds each kind of damage (E162), and the statistics add up (E164)."""

from collections.abc import Callable

import pytest
from tests.model.support import PAGE, USED, Guest, guest, visit

from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import GPTE_A, GPTE_D
from shadow_mmu.model.vm import SharedState


def prepared() -> tuple[Guest, SharedState, int]:
    """Return a guest with an unsync table, a synced one, a large page, and two roots: (guest, vm, unsync table's page id)."""
    one, (a, b) = guest("lru:3", vcpus=2)
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    one.map(a, 5 << 30, 0x600000, USED, level=2)
    visit(one, b, a)
    one.store(window, 0x500000 | USED)
    one.write(5 << 30)
    one.audit()
    return one, one.machine.vm, one.page(entry & ~0xFFF)["id"]


def break_rmap(vm: SharedState, unsync: int) -> None:
    vm.books.rmaps[next(iter(vm.books.rmaps))].pop()


def break_gfn_record(vm: SharedState, unsync: int) -> None:
    page = next(p for p in vm.books.live.values() if p.translations)
    index = next(iter(page.translations))
    page.translations[index] = (0x777, 7)


def break_parents(vm: SharedState, unsync: int) -> None:
    vm.books.live[unsync].parents.clear()


def break_count(vm: SharedState, unsync: int) -> None:
    vm.books.live[unsync].parents[0][0].unsync_children += 1


def break_level(vm: SharedState, unsync: int) -> None:
    next(p for p in vm.books.live.values() if p.level == 2 and not p.direct).unsync = True


def break_mark(vm: SharedState, unsync: int) -> None:
    parent, _ = vm.books.live[unsync].parents[0]
    parent.unsync_bitmap, parent.unsync_children = 0, 0


def break_root_count(vm: SharedState, unsync: int) -> None:
    vm.books.page_at(vm.vcpus[0].root.hpa).root_count += 1


def break_pin(vm: SharedState, unsync: int) -> None:
    page = vm.books.live[unsync]
    page.role |= 1 << 11


def break_indirect(vm: SharedState, unsync: int) -> None:
    vm.books.indirect_shadow_pages -= 1


def break_track(vm: SharedState, unsync: int) -> None:
    vm.books.write_track.popitem()


def break_writable(vm: SharedState, unsync: int) -> None:
    page = next(p for p in vm.books.live.values() if p.level == 1 and p.sptes)
    index = next(iter(page.sptes))
    page.sptes[index] = page.sptes[index] & ~sptes.MMU_WRITABLE | sptes.W


def break_host_writable(vm: SharedState, unsync: int) -> None:
    vm.memory.read_only.append((0, 1 << 20))


def break_protection(vm: SharedState, unsync: int) -> None:
    vm.books.live[unsync].unsync = False


def break_child(vm: SharedState, unsync: int) -> None:
    vm.books.live[unsync].gfn += 1


def break_table(vm: SharedState, unsync: int) -> None:
    page = next(p for p in vm.books.live.values() if p.level == 1 and p.sptes and not p.direct and not p.unsync)
    vm.memory.set_word(page.gfn << 12 | next(iter(page.sptes)) << 3, 0)


def break_accessed(vm: SharedState, unsync: int) -> None:
    page = next(p for p in vm.books.live.values() if p.level == 1 and p.sptes and not p.direct and not p.unsync)
    gpa = page.gfn << 12 | next(iter(page.sptes)) << 3
    vm.memory.set_word(gpa, vm.memory.word(gpa) & ~GPTE_A)


def break_dirty(vm: SharedState, unsync: int) -> None:
    for page in (p for p in vm.books.live.values() if p.level == 1 and not p.direct and not p.unsync):
        for index, spte in page.sptes.items():
            if spte & sptes.W:
                gpa = page.gfn << 12 | index << 3
                vm.memory.set_word(gpa, vm.memory.word(gpa) & ~GPTE_D)
                return
    raise AssertionError("no writable entry of a synced table")


def break_direct(vm: SharedState, unsync: int) -> None:
    page = next(p for p in vm.books.live.values() if p.direct and p.sptes)
    page.sptes[next(iter(page.sptes))] += 1 << 12


def break_link(vm: SharedState, unsync: int) -> None:
    root = vm.books.page_at(vm.vcpus[0].root.hpa)
    root.sptes[next(iter(root.sptes))] &= ~sptes.SHADOW_PRESENT


def break_invalid(vm: SharedState, unsync: int) -> None:
    root = vm.books.page_at(vm.vcpus[0].root.hpa)
    vm.books.live[next(iter(root.sptes.values())) >> 12 & 0xFFFF].role |= 1 << 11


def break_bucket(vm: SharedState, unsync: int) -> None:
    page = vm.books.live[unsync]
    vm.books.by_gfn.setdefault(0x999, []).append(page)


def break_cached(vm: SharedState, unsync: int) -> None:
    vm.vcpus[0].previous[0].hpa = sptes.page_hpa(4711)


def break_duplicate(vm: SharedState, unsync: int) -> None:
    first, second = vm.vcpus[0].previous[:2]
    second.pgd, second.hpa = first.pgd, first.hpa


def break_obsolete(vm: SharedState, unsync: int) -> None:
    vm.books.page_at(vm.vcpus[0].root.hpa).role |= 1 << 11


@pytest.mark.parametrize(
    ("invariant", "damage"),
    [
        ("I1", break_rmap),
        ("I1", break_gfn_record),
        ("I2", break_parents),
        ("I3", break_count),
        ("I4", break_level),
        ("I5", break_mark),
        ("I6", break_root_count),
        ("I7", break_pin),
        ("I8", break_indirect),
        ("I9", break_track),
        ("I11", break_writable),
        ("I11", break_host_writable),
        ("I12", break_protection),
        ("I13", break_child),
        ("I13", break_link),
        ("I14", break_table),
        ("I14", break_accessed),
        ("I14", break_dirty),
        ("I14", break_direct),
        ("I15", break_invalid),
        ("I16", break_bucket),
        ("I17", break_cached),
        ("I17", break_duplicate),
        ("I18", break_obsolete),
    ],
)
def test_e162_audit_names_the_invariant_that_is_broken(
    invariant: str, damage: Callable[[SharedState, int], None]
) -> None:
    one, vm, unsync = prepared()
    damage(vm, unsync)
    found = one.machine.audit()
    assert invariant in {text.split(":")[0] for text in found}
