"""`Vm.walk`: each ending in each paging mode, what it says where guest and shadow part, and what it refuses."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shadow_mmu import PageFault, TripleFault, Vm, ops
from shadow_mmu.cpu import CpuModel
from shadow_mmu.model.constants import DUMMY_ROOT, PAE_ROOT
from shadow_mmu.pagewalk import EntryKind, PageWalk, ShadowStep, Verdict

USED = 0x67
P, W, U, PS, NX = 1, 2, 4, 1 << 7, 1 << 63
CR0, CR0_OFF, WP = 0x80050033, 0x00050033, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
NXE, LME = 1 << 11, 1 << 8
ROOT, DATA, GVA = 0x10000, 0x200000, 0x601000
SIZE = 8 << 20


class Guest:
    """A guest of one mode that maps GVA to DATA."""

    def __init__(self, vm: Vm, mode: str) -> None:
        self.vm, self.cpu, self.mode = vm, vm.vcpus[0], mode
        self.width = 4 if mode == "32-bit" else 8
        tables = {"32-bit": 2, "PAE": 3, "4-level": 4, "5-level": 5}[mode]
        bits = 10 if self.width == 4 else 9
        self.entries: dict[int, int] = {}
        """By level the gpa of the entry of GVA."""
        for level in range(tables, 0, -1):
            index = GVA >> 12 + bits * (level - 1) & (1 << bits) - 1
            self.entries[level] = ROOT + (tables - level << 12) + self.width * index
        for level in range(tables, 1, -1):
            bits_of = P if mode == "PAE" and level == 3 else USED
            self.set(level, ROOT + (tables - level + 1 << 12) | bits_of)
        self.set(1, DATA | USED)
        cr4 = {"32-bit": PSE, "PAE": PAE, "4-level": PAE, "5-level": PAE | LA57}[mode]
        efer = NXE | (LME if "level" in mode else 0)
        self.host(ops.write_cr0(CR0_OFF, host=True), ops.write_efer(efer, host=True), ops.write_cr4(cr4, host=True))
        # The PDPTRs are loaded by the write that turns paging on.
        self.host(ops.write_cr3(ROOT, host=True), ops.write_cr0(CR0, host=True))

    def host(self, *operations: ops.Op) -> None:
        assert self.vm.run([ops.program(operations)]).faults == 0

    def set(self, level: int, entry: int) -> None:
        """Hypervisor-side write of the entry at a level."""
        self.vm.memory.write(self.entries[level], entry.to_bytes(self.width, "little"))

    def walk(self, gva: int = GVA + 5, **how: Any) -> PageWalk:  # noqa: ANN401  the arguments of walk
        return self.vm.walk(gva, **how)


MODES = ["32-bit", "PAE", "4-level", "5-level"]


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Vm(SIZE, vcpus=2) as machine:
        yield machine
        assert machine.audit() == []


@pytest.fixture(params=MODES)
def guest(vm: Vm, request: pytest.FixtureRequest) -> Guest:
    return Guest(vm, request.param)


def noted(walk: PageWalk) -> str:
    return "\n".join(walk.notes)


def test_before_the_first_access_no_root_is_loaded(guest: Guest) -> None:
    walk = guest.walk()
    assert (walk.guest.mode, walk.guest.address, walk.guest.end) == (guest.mode, DATA + 5, EntryKind.PAGE)
    assert walk.shadow is not None
    assert (walk.shadow.end, walk.shadow.root, walk.verdict, walk.tlb) == (
        EntryKind.NO_ROOT,
        None,
        Verdict.MISSING,
        None,
    )
    assert "the shadow has no entry yet (no root is loaded)" in noted(walk)
    assert f"{GVA + 5:#x} through the shadow tables: no root is loaded" in repr(walk)


def test_after_an_access_both_lead_to_the_page_and_the_tlb_has_it(guest: Guest) -> None:
    guest.cpu.access(GVA, "write")
    walk = guest.walk()
    levels = {"32-bit": 2, "PAE": 3, "4-level": 4, "5-level": 5}[guest.mode]
    assert [step.level for step in walk.guest.steps] == list(range(levels, 0, -1))
    assert [step.entry_address for step in walk.guest.steps] == [guest.entries[n] for n in range(levels, 0, -1)]
    assert walk.shadow is not None
    assert [step.level for step in walk.shadow.steps] == list(range(max(levels, 3), 0, -1))
    assert walk.shadow.address == walk.guest.address == DATA + 5
    assert walk.shadow.rights == walk.guest.rights
    assert walk.verdict is Verdict.AGREE
    assert walk.tlb is not None
    assert (walk.tlb.address, walk.tlb.agrees) == (DATA + 5, True)
    leaf = walk.shadow.steps[-1]
    assert isinstance(leaf, ShadowStep)
    assert leaf.flags == ("P", "W", "U", "A", "D", "host-writable", "mmu-writable")
    assert leaf.gfn == guest.entries[1] >> 12
    assert "guest and shadow agree" in noted(walk)
    if levels < 4:
        assert walk.shadow.root == PAE_ROOT
        assert walk.shadow.steps[0].name == "PAE root"
    if guest.mode == "32-bit":
        assert "4-byte quadrant 1" in leaf.role_words
    if guest.mode == "PAE":
        assert (walk.guest.steps[0].name, walk.guest.steps[0].flags) == ("PDPTR", ("P",))


def test_an_entry_that_is_not_present_ends_both(guest: Guest) -> None:
    for level, entry in guest.entries.items():
        good = guest.vm.memory.read(entry, guest.width)
        guest.set(level, 0xFFF000 & ~P)
        guest.cpu.write_cr3(ROOT)  # under PAE the PDPTRs are loaded
        with pytest.raises(PageFault):
            guest.cpu.access(GVA)
        walk = guest.walk(kind="read", user=True)
        assert (walk.guest.end, walk.guest.steps[-1].level) == (EntryKind.NOT_PRESENT, level)
        assert walk.shadow is not None
        assert walk.shadow.end is EntryKind.NOT_PRESENT
        assert walk.verdict is Verdict.UNMAPPED
        assert walk.access is not None
        assert (walk.access.outcome, walk.access.error_code) == ("#PF", U)
        assert f"level {level}" in walk.access.reason
        assert "neither guest nor shadow maps the address" in noted(walk)
        guest.vm.memory.write(entry, good)


def test_a_reserved_bit_and_a_table_outside_memory_are_named(guest: Guest) -> None:
    guest.set(2, SIZE | USED)
    walk = guest.walk(kind="write")
    assert (walk.guest.end, walk.access and walk.access.error_code) == (EntryKind.ABSENT, W)
    assert "table not in memory at level 1" in repr(walk)
    guest.set(2, 4 << 20 | USED | PS | (1 << 17 if guest.width == 4 else 1 << 13))
    walk = guest.walk(kind="write")
    assert (walk.guest.end, walk.access and walk.access.error_code) == (EntryKind.RESERVED, P | W | 8)
    assert walk.access is not None
    assert walk.access.reason == f"level 2 (PD): reserved bit {17 if guest.width == 4 else 13} set"


def test_a_large_page_of_each_mode_has_its_size(guest: Guest) -> None:
    # DATA is no multiple of 4 MiB: its low bits are the PAT and PSE-36 bits of such an entry, and clear here.
    size = 4 << 20 if guest.width == 4 else 2 << 20
    base = 4 << 20
    guest.set(2, base | USED | PS)
    guest.cpu.access(GVA)
    walk = guest.walk()
    assert (walk.guest.page_size, walk.guest.address) == (size, base + (GVA + 5) % size)
    assert walk.shadow is not None
    assert (walk.shadow.page_size, walk.shadow.address) == (4096, walk.guest.address)
    last = walk.shadow.steps[-1]
    assert isinstance(last, ShadowStep)
    assert last.role_words.startswith("direct ")
    assert walk.verdict is Verdict.AGREE


def test_a_page_of_pse_36_is_above_4_gib(vm: Vm) -> None:
    guest = Guest(vm, "32-bit")
    guest.set(2, 0x40_0000 | 5 << 13 | USED | PS)
    walk = guest.walk(0xFFFF_FFFF_0000_0000 | GVA)
    assert walk.guest.start == GVA
    assert walk.guest.address == (5 << 32) + 0x40_0000 + GVA % (4 << 20)
    assert walk.guest.page_size == 4 << 20
    assert walk.verdict is Verdict.MMIO
    assert "in a page of 4 MiB" in repr(walk)


def test_a_page_outside_memory_is_mmio(guest: Guest) -> None:
    guest.set(1, SIZE | USED)
    assert str(guest.cpu.access(GVA)).startswith("MmioExit")
    walk = guest.walk(kind="read")
    assert (walk.verdict, walk.access and walk.access.outcome) == (Verdict.MMIO, "MMIO")
    assert "the gpa is in no memslot" in noted(walk)


def test_with_paging_off_the_address_is_the_gpa(vm: Vm) -> None:
    guest = Guest(vm, "PAE")
    guest.host(ops.write_cr0(CR0_OFF))
    guest.cpu.access(DATA + 8)
    walk = vm.walk(1 << 40 | DATA + 8, kind="fetch", user=True)
    assert (walk.guest.mode, walk.guest.root, walk.guest.steps, walk.guest.levels) == ("paging off", None, (), 0)
    assert walk.guest.address == DATA + 8
    assert walk.shadow is not None
    assert walk.shadow.address == DATA + 8
    assert walk.verdict is Verdict.AGREE
    assert walk.access is not None
    assert str(walk.access) == f"user fetch: allowed: gpa {DATA + 8:#x}"
    assert f"{DATA + 8:#x} with paging off: {DATA + 8:#x}, rwx u" in repr(walk)


@pytest.mark.parametrize(("mode", "gva"), [("4-level", 1 << 47), ("5-level", 1 << 56)])
def test_an_address_that_is_not_canonical_reads_no_table(vm: Vm, mode: str, gva: int) -> None:
    guest = Guest(vm, mode)
    guest.cpu.access(GVA)
    walk = guest.walk(gva, kind="read")
    assert walk.shadow is not None
    assert (walk.guest.steps, walk.shadow.steps) == ((), ())
    assert walk.guest.end is walk.shadow.end is EntryKind.NON_CANONICAL
    assert (walk.verdict, walk.access and walk.access.outcome) == (Verdict.UNMAPPED, "#GP")


def test_the_dummy_root_of_a_cr3_outside_memory(vm: Vm) -> None:
    guest = Guest(vm, "4-level")
    guest.cpu.write_cr3(SIZE)
    with pytest.raises(PageFault):
        guest.cpu.access(GVA)
    walk = guest.walk()
    assert walk.shadow is not None
    assert (walk.shadow.root, walk.shadow.end, walk.shadow.steps) == (DUMMY_ROOT, EntryKind.DUMMY_ROOT, ())
    assert walk.guest.end is EntryKind.ABSENT
    assert "through the shadow tables: the dummy root, which has no entries" in repr(walk)


def test_a_vcpu_that_is_shut_down_gets_nowhere() -> None:
    with Vm(SIZE, vcpus=1, policy="locked") as vm:
        guest = Guest(vm, "4-level")
        guest.cpu.write_cr3(SIZE)
        with pytest.raises(TripleFault):
            guest.cpu.access(GVA)
        walk = guest.walk(kind="read")
    assert walk.access is not None
    assert walk.access.outcome == "triple fault"
    assert "is shut down" in noted(walk)


def test_a_pdptr_is_the_one_that_was_loaded(vm: Vm) -> None:
    """E101: memory may hold another by now."""
    guest = Guest(vm, "PAE")
    guest.cpu.access(GVA)
    guest.set(3, 0x7F000 | P)
    walk = guest.walk()
    step = walk.guest.steps[0]
    assert (step.entry, step.target) == (ROOT + 0x1000 | P, ROOT + 0x1000)
    assert step.notes == ("as it was loaded: memory holds 0x7f001 now, which counts when CR3 is written",)
    assert walk.verdict is Verdict.AGREE
    assert "memory holds 0x7f001 now" in walk._repr_html_()
    missing = guest.walk(GVA + (2 << 30))
    assert missing.guest.end is EntryKind.NOT_PRESENT
    assert missing.shadow is not None
    assert [step.name for step in missing.shadow.steps] == ["PAE root"]


def test_a_stale_translation_is_said_to_be_stale_and_why_it_may_be(guest: Guest) -> None:
    """D.5: the guest changes its own table, and has not invalidated yet."""
    window = GVA + 0x1000
    table = guest.entries[1] & ~0xFFF
    guest.vm.memory.write(guest.entries[1] + guest.width, (table | USED).to_bytes(guest.width, "little"))
    guest.cpu.access(GVA, "write")
    at = window | guest.entries[1] & 0xFFF
    guest.cpu.store(at, DATA + 0x1000 | P | U | 0x60, guest.width)
    walk = guest.walk(kind="write", user=True)
    assert walk.verdict is Verdict.STALE
    assert (walk.guest.address, walk.shadow and walk.shadow.address) == (DATA + 0x1005, DATA + 5)
    text = noted(walk)
    assert f"stale: the shadow still leads to {DATA + 5:#x}" in text
    assert f"the guest's tables now say {DATA + 0x1005:#x}" in text
    assert f"level 1, gfn {table >> 12:#x}) is unsync, until an INVLPG" in text
    assert walk.access is not None
    assert walk.access.error_code == P | W | U
    assert walk.access.reason == "level 1 (PT): W is clear (the shadow's entry may still decide otherwise)"
    steps = walk.shadow.steps if walk.shadow else ()
    assert [one.unsync for one in steps if isinstance(one, ShadowStep)][-1]
    assert [one.marked for one in steps if isinstance(one, ShadowStep)][-2]
    assert "1 unsync below, here too" in repr(walk)
    guest.cpu.invlpg(GVA)
    guest.cpu.access(GVA)
    again = guest.walk()
    assert (again.verdict, again.guest.address) == (Verdict.AGREE, DATA + 0x1005)


def test_a_tlb_entry_that_the_tables_no_longer_have(guest: Guest) -> None:
    guest.cpu.access(GVA, "write")
    guest.set(1, 0)  # by the hypervisor: the shadow entry is dropped at once, the TLB before the next access
    walk = guest.walk()
    assert walk.verdict is Verdict.UNMAPPED
    assert walk.tlb is not None
    assert not walk.tlb.agrees
    assert f"the TLB has {DATA + 5:#x}, rwx u, and the shadow tables no longer have it: it is dropped before" in noted(
        walk
    )
    assert "serviced before the next access: TLB_FLUSH" in noted(walk)


@pytest.mark.parametrize(
    ("bits", "cr0", "cr4", "how", "told"),
    [
        (USED & ~W, CR0, 0, {"kind": "write"}, "supervisor write: #PF, error code 0x3: level 1 (PT): W is clear, and CR0.WP is set"),
        (USED & ~W, CR0 & ~WP, 0, {"kind": "write"}, "supervisor write: allowed"),
        (USED & ~W, CR0 & ~WP, 0, {"kind": "write", "user": True}, "user write: #PF, error code 0x7: level 1 (PT): W is clear"),
        (USED & ~U, CR0, 0, {"kind": "read", "user": True}, "user read: #PF, error code 0x5: level 1 (PT): U is clear"),
        (USED | NX, CR0, 0, {"kind": "fetch"}, "supervisor fetch: #PF, error code 0x11: level 1 (PT): NX is set"),
        (USED, CR0, SMEP, {"kind": "fetch"}, "error code 0x11: U is set at every level: CR4.SMEP keeps a supervisor out"),
        (USED, CR0, SMAP, {"kind": "read"}, "error code 0x1: U is set at every level: CR4.SMAP keeps a supervisor out"),
        (USED, CR0, SMAP, {"kind": "read", "ac": True}, "supervisor read with EFLAGS.AC: allowed"),
        (USED, CR0, SMAP, {"kind": "read", "ac": True, "implicit": True}, "supervisor implicit read with EFLAGS.AC: #PF"),
    ],
)  # fmt: skip
def test_why_an_access_faults(bits: int, cr0: int, cr4: int, how: dict[str, Any], told: str) -> None:
    with Vm(SIZE, vcpus=1) as vm:
        answered(vm, (bits, cr0, cr4), how, told)


def answered(vm: Vm, state: tuple[int, int, int], how: dict[str, Any], told: str) -> None:
    bits, cr0, cr4 = state
    guest = Guest(vm, "4-level")
    guest.host(ops.write_cr0(cr0), ops.write_cr4(PAE | cr4))
    guest.set(1, DATA | bits)
    walk = guest.walk(**how)
    assert told in str(walk.access)
    assert str(walk.access) in repr(walk)
    assert walk.access is not None
    flags = {name: how[name] for name in how.keys() - {"kind"}}
    if walk.access.outcome == "allowed":
        guest.cpu.access(GVA, how["kind"], **flags)
    else:
        with pytest.raises(PageFault, match=f"error code {walk.access.error_code:#x}"):
            guest.cpu.access(GVA, how["kind"], **flags)


def test_rights_are_told_in_words(vm: Vm) -> None:
    guest = Guest(vm, "4-level")
    guest.host(ops.write_cr4(PAE | SMAP | SMEP))
    assert (
        "by the guest's tables a user may read, write and fetch; a supervisor may with EFLAGS.AC read and write"
        in guest.walk().notes
    )
    guest.set(2, ROOT + 0x3000 | P | 0x60)
    assert "by the guest's tables a user may do nothing; a supervisor may read and fetch" in guest.walk().notes


def test_write_protection_of_a_guest_table_is_no_disagreement(guest: Guest) -> None:
    """C.5: the frame of an upper table is mapped without W for as long as it is shadowed."""
    upper = guest.entries[2] & ~0xFFF
    guest.set(1, upper | USED)
    guest.cpu.access(GVA)
    walk = guest.walk()
    assert walk.verdict is Verdict.AGREE
    assert (str(walk.guest.rights), walk.shadow and str(walk.shadow.rights)) == ("rwx u", "r-x u")
    assert "but for W" in noted(walk)


def test_a_supervisor_write_under_cr0_wp_0_is_no_disagreement(guest: Guest) -> None:
    """B.5: the leaf has W and no U then."""
    guest.host(ops.write_cr0(CR0 & ~WP))
    guest.set(1, DATA | USED & ~W)
    guest.cpu.access(GVA, "write")
    walk = guest.walk()
    assert (str(walk.guest.rights), walk.shadow and str(walk.shadow.rights)) == ("r-x u", "rwx s")
    assert walk.verdict is Verdict.AGREE
    assert "CR0.WP is clear, so a supervisor's write was given W and took U" in noted(walk)
    guest.host(ops.write_cr4({"32-bit": PSE, "PAE": PAE, "4-level": PAE, "5-level": PAE | LA57}[guest.mode] | SMAP))
    guest.cpu.access(GVA, "write", ac=True)
    told = guest.walk(kind="read").access
    assert told is not None
    assert told.reason == (
        "U is set at every level: CR4.SMAP keeps a supervisor out (the shadow's entry may still decide otherwise)"
    )
    guest.cpu.access(GVA)  # it does: the leaf has no U


def test_looking_changes_nothing(guest: Guest) -> None:
    guest.cpu.access(GVA, "write")
    guest.cpu.write_cr3(ROOT)
    before, stats = guest.vm.state_words().tobytes(), guest.vm.stats
    memory = guest.vm.memory.read(0, SIZE)
    for gva in (GVA, 0, GVA + (1 << 30), 1 << 63):
        for kind in ("read", "write", "fetch"):
            walk = guest.walk(gva, kind=kind, vcpu=0)
            assert repr(walk)
            assert walk._repr_html_()
    assert guest.vm.state_words().tobytes() == before
    assert guest.vm.stats == stats
    assert guest.vm.memory.read(0, SIZE) == memory


def test_the_json_form_holds_both_dimensions(guest: Guest) -> None:
    guest.cpu.access(GVA, "write")
    found = json.loads(json.dumps(guest.walk(kind="read").as_dict()))
    assert found.keys() == {"gva", "guest", "shadow", "vcpu", "verdict", "tlb", "access", "notes"}
    assert (found["vcpu"], found["verdict"], found["guest"]["mode"]) == (0, "agree", guest.mode)
    assert found["tlb"] == {
        "spte": found["tlb"]["spte"],
        "address": f"{DATA + 5:#x}",
        "rights": "rwx u",
        "agrees": True,
    }
    assert found["access"] == {
        "access": "supervisor read", "outcome": "allowed", "error_code": None, "reason": f"gpa {DATA + 5:#x}"
    }  # fmt: skip
    leaf = found["shadow"]["steps"][-1]
    assert (leaf["gfn"], leaf["unsync"], leaf["marked"]) == (f"{guest.entries[1] >> 12:#x}", False, False)
    assert leaf["role_words"].startswith("rwx u")


def test_html_escapes_and_has_every_row(guest: Guest) -> None:
    guest.cpu.access(GVA, "write")
    walk = guest.walk()
    html = walk._repr_html_()
    assert walk.shadow is not None
    assert html.count("<tr>") == len(walk.guest.steps) + len(walk.shadow.steps) + 2
    assert "guest&#x27;s" in html
    assert "<td>P W U A D host-writable mmu-writable</td>" in html


@pytest.mark.parametrize(("cr4", "verdict"), [(0, Verdict.NARROWER), (SMEP, Verdict.STALE), (SMAP, Verdict.STALE)])
def test_a_leaf_without_u_is_narrower_unless_smep_or_smap_is_on(vm: Vm, cr4: int, verdict: Verdict) -> None:
    """To a supervisor a page without U is open that is closed with it."""
    guest = Guest(vm, "4-level")
    guest.host(ops.write_cr4(PAE | cr4))
    table = guest.entries[1] & ~0xFFF
    guest.vm.memory.write(guest.entries[1] + 8, (table | USED & ~U).to_bytes(8, "little"))
    guest.set(1, DATA | USED & ~U)
    guest.cpu.access(GVA, "write")
    guest.cpu.store(GVA + 0x1000 | guest.entries[1] & 0xFFF, DATA | USED)
    walk = guest.walk()
    assert (str(walk.guest.rights), walk.shadow and str(walk.shadow.rights)) == ("rwx u", "rwx s")
    assert walk.verdict is verdict
    assert noted(walk).splitlines()[1].startswith("stale: " if cr4 else "same page, but the shadow gives rwx s")


def test_a_protection_key_that_refuses_is_named() -> None:
    """E111: the last entry has the key, PKRU the bits."""
    with Vm(SIZE, vcpus=1, cpu=CpuModel(pku=True)) as vm:
        refused_by_key(Guest(vm, "4-level"))


def refused_by_key(guest: Guest) -> None:
    guest.host(ops.write_cr4(PAE | PKE))
    guest.set(1, DATA | USED | 5 << 59)
    guest.cpu.write_pkru(2 << 2 * 5)
    told = guest.walk(kind="write", user=True).access
    assert str(told) == "user write: #PF, error code 0x27: PKRU has write-disable for key 5 of the page"
    with pytest.raises(PageFault, match="error code 0x27"):
        guest.cpu.access(GVA, "write", user=True)
    assert "PK=5" in guest.walk().guest.steps[-1].flags
