"""One scenario for each mutant: it holds on the machine as it is and, for a stated reason, not with that one rule switched off."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.behaviour.guest import PAGE, PS, RWU, USED, A, D, Guest, GuestMaker, P, U, W
from tests.behaviour.machines import AnyMachine

from shadow_mmu.errors import BrokenError
from shadow_mmu.model.constants import INVALID_ROOT, REQ_FREE_OBSOLETE_ROOTS
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)
NEW = 0x500000
"""A frame that no root maps at first."""

PANIC_VALUE = 0xDEAD_BEEF_0000_0000
"""The value whose store panics under the two mutants that panic."""

AnyGuest = Guest[AnyMachine]


@dataclass(frozen=True)
class Scenario:
    """What is run, the rules it is about, and what it must say under its mutant."""

    mutant: str
    ids: str
    reason: str
    run: Callable[["Scenario", GuestMaker], AnyGuest]

    def expect(self, holds: object) -> None:
        """Fail with the stated reason."""
        if not holds:
            raise AssertionError(self.reason)


SCENARIOS: dict[str, Scenario] = {}


def scenario(mutant: str, ids: str, reason: str) -> Callable[[Callable[[Scenario, GuestMaker], AnyGuest]], None]:
    """Register a scenario."""

    def register(run: Callable[[Scenario, GuestMaker], AnyGuest]) -> None:
        assert mutant not in SCENARIOS, f"{mutant} has two scenarios"
        SCENARIOS[mutant] = Scenario(mutant, ids, reason, run)

    return register


def edited(guest: GuestMaker, policy: str = "lru:3", *, vcpus: int = 1) -> tuple[AnyGuest, list[int], int, int]:
    """Return a guest on root A that may write the table of PAGE: (guest, roots, gpa of PAGE's entry, gva of it)."""
    one, roots = guest(policy, vcpus=vcpus)
    entry = one.entry(roots[0], PAGE)
    window = one.window(roots[0], entry)
    one.visit(roots[1], roots[0])
    return one, roots, entry, window


# ------------------------------------------------------------------------------------------ sync


@scenario("skip-sync", "E008 E139", "the flush did not bring the changed entry")
def _skip_sync(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), _, window = edited(guest)
    one.store(window, NEW | USED)
    one.cr3(a)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("sync-keeps-write-when-clean", "E139 C.5", "a write after the sync left D clear in the guest's entry")
def _sync_keeps_write_when_clean(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), entry, window = edited(guest)
    one.write(PAGE)
    one.store(window, 0x400000 | RWU | A)  # the guest cleans its entry
    one.cr3(a)
    one.write(PAGE)
    self.expect(one.peek(entry) & D)
    return one


@scenario("sync-without-protect", "E140", "a store after the sync was lost")
def _sync_without_protect(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), _, window = edited(guest, vcpus=2)
    one.vcpu = 1
    one.visit(a)
    one.store(window, NEW | USED)
    one.vcpu = 0
    one.cr3(a)
    one.read(PAGE)
    one.vcpu = 1
    one.store(window, NEW + 0x1000 | USED)
    one.vcpu = 0
    one.cr3(a)
    self.expect(one.read(PAGE).value == NEW + 0x1000)
    return one


@scenario("sync-without-flush", "E140 F-15", "a store through a TLB that the sync did not flush was lost")
def _sync_without_flush(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), entry, window = edited(guest, vcpus=2)
    one.vcpu = 1
    one.visit(a)
    one.store(window, one.peek(entry))  # unsync, and yet nothing changed: the sync itself has nothing to flush
    one.vcpu = 0
    one.cr3(a)
    one.read(PAGE)
    one.vcpu = 1
    one.store(window, NEW | USED)
    one.vcpu = 0
    one.cr3(a)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("sync-unsyncs", "E137", "a sync mapped a table writable")
def _sync_unsyncs(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), entry, window = edited(guest)
    table = entry & ~0xFFF
    one.map(a, PAGE + 0x1000, table, P | U | A)
    one.read(PAGE + 0x1000)
    one.store(window + 8, table | USED)  # the guest's read-only alias of the table becomes writable
    one.cr3(a)
    one.enter()
    self.expect(not one.page(table)["sptes"][2] & W)
    return one


@scenario("link-without-sync", "E142 F-14", "an entry that was changed before the link was used after it")
def _link_without_sync(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("lru:3")
    entry, beside = one.entry(a, PAGE), PAGE + 0x1000
    one.map(a, beside, 0x402000, USED)
    window = one.window(b, entry)
    one.visit(a)
    one.read(beside)
    one.visit(b)
    one.store(window + 8, NEW | USED)
    one.poke(one.entry(b, 7 << 39, 4), one.entry(a, PAGE, 3) & ~0xFFF | RWU)  # not present -> present: no flush is owed
    one.read((7 << 39) + PAGE)
    self.expect(one.read((7 << 39) + beside).value == NEW)
    return one


# ------------------------------------------------------------------------------------------ unsync


@scenario("mark-stops-early", "E135 E051 D.1", "a root above an unsync table looked clean")
def _mark_stops_early(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), _, window = edited(guest)
    one.store(window, NEW | USED)
    one.cr3(a)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("link-does-not-mark", "F-41 I5 P12", "a root that an unsync table was linked under looked clean")
def _link_does_not_mark(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b), entry, window = edited(guest, vcpus=2)
    beside, region = PAGE + 0x1000, 1 << 30
    one.map(a, beside, 0x402000, USED)
    one.poke(one.entry(b, region, 2), entry & ~0xFFF | RWU)
    one.vcpu = 1
    one.visit(a)
    one.store(window, 0x400000 | USED)  # unsync from here on, and writable in vCPU 1's TLB
    one.vcpu = 0
    one.cr3(b)
    one.read(region + beside)  # links the unsync table under B
    one.vcpu = 1
    one.store(window + 8, NEW | USED)
    one.vcpu = 0
    one.cr3(b)
    self.expect(one.read(region + beside).value == NEW)
    return one


@scenario("table-stays-writable", "F-15 C.3", "a store to a frame that had become a table did not trap")
def _table_stays_writable(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("lru:3")
    frame = one.table()
    one.map(a, 0x7000, frame, USED)
    one.poke(one.entry(b, 1 << 30, 2), frame | RWU)
    one.visit(a)
    one.store(0x7000, 0x402000 | USED)
    one.cr3(b)
    one.read(1 << 30)
    one.cr3(a)
    one.store(0x7000, NEW | USED)
    one.cr3(b)
    self.expect(one.read(1 << 30).value == NEW)
    return one


# ------------------------------------------------------------------------------------------ walk and fault


@scenario("walk-keeps-write-when-clean", "E104 B.2", "a write left D clear in the guest's entry")
def _walk_keeps_write_when_clean(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    entry = one.map(a, 0x7000, 0x480000, RWU)
    one.cr3(a)
    one.read(0x7000)
    one.write(0x7000)
    self.expect(one.peek(entry) & D)
    return one


@scenario("leaf-rights-only", "E114 F-20", "a user wrote under a read-only upper entry")
def _leaf_rights_only(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    at = one.entry(a, PAGE, 2)
    one.poke(at, one.peek(at) & ~W)
    one.cr3(a)
    self.expect(one.write(PAGE, USER) == (OutcomeCode.PAGE_FAULT, PAGE, 7))
    return one


@scenario("alter-one-spte", "C.2", "an entry mapped another frame than the guest's")
def _alter_one_spte(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    one.cr3(a)
    for number in range(128):
        one.map(a, (number + 16) << 12, 0x500000 + (number << 12))
    for number in range(128):
        self.expect(one.read((number + 16) << 12).value == 0x500000 + (number << 12))
    return one


@scenario("fault-keeps-entry", "E070", "after an injected fault the old frame was reached")
def _fault_keeps_entry(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, _, _, window = edited(guest)
    one.store(window, 0x400000 | P | A)  # a supervisor page
    one.invlpg(PAGE)
    one.read(PAGE)
    one.store(window, NEW | P | A)
    assert one.read(PAGE, USER).code == OutcomeCode.PAGE_FAULT
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("child-reuse-ignores-gfn", "F-02 C.3", "a page below a large leaf was filled for another large leaf")
def _child_reuse_ignores_gfn(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    region, twin = 1 << 30, 2 << 30
    at = one.map(a, region, 0x800000, USED, level=2)
    one.map(a, twin, 0x800000, USED, level=2)
    one.cr3(a)
    one.read(region)
    one.read(twin)
    one.poke(at, 0xA00000 | USED | PS)
    assert one.read(region + 0x1000).value == 0xA01000
    self.expect(one.read(twin + 0x1000).value == 0x801000)  # through the page that the first leaf had
    return one


@scenario("child-reuse-ignores-role", "F-03 C.3", "a page that shadows a table was filled for a large leaf")
def _child_reuse_ignores_role(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    region, twin, table = 1 << 30, 2 << 30, 0x800000
    at = one.entry(a, region, 2)
    for entry in (at, one.entry(a, twin, 2)):
        one.poke(entry, table | USED)
    one.poke(table, NEW | USED)
    one.cr3(a)
    assert one.read(region).value == one.read(twin).value == NEW
    one.poke(at, table | USED | PS)  # the same frame, as a large page now
    assert one.read(region + 0x1000).value == table + 0x1000
    self.expect(one.read(twin + 0x1000).code == OutcomeCode.PAGE_FAULT)  # the table's entry 1 is empty
    return one


# ------------------------------------------------------------------------------------------ writes to tables


@scenario("host-write-untracked", "E143", "the old frame was reached after a hypervisor's write")
def _host_write_untracked(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    one.visit(a)
    one.poke(entry, NEW | USED)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("no-zap-on-write", "E143", "the old table was reached after a trapped write and a flush")
def _no_zap_on_write(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    at, other = one.entry(a, PAGE, 2), one.table()
    one.poke(other + 8, NEW | USED)
    window = one.window(a, at)
    one.visit(a)
    one.store(window, other | RWU)
    one.cr3(a)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("no-flooding-limit", "E144", "a table written three times without a use kept its page")
def _no_flooding_limit(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    for index in (100, 101, 102):
        one.store(window + 8 * index, 0)
    self.expect(not one.pages(table))
    return one


# ------------------------------------------------------------------------------------------ flushes


@scenario("invlpg-keeps-tlb", "E063", "a translation was used after its INVLPG")
def _invlpg_keeps_tlb(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, _, _, window = edited(guest)
    one.read(PAGE, USER)
    one.store(window, 0x400000 | USED & ~U)  # the sync of this entry takes a right that needs no remote flush
    one.invlpg(PAGE)
    self.expect(one.read(PAGE, USER).code == OutcomeCode.PAGE_FAULT)
    return one


@scenario("invlpg-skips-sync", "E063", "INVLPG left the old shadow entry")
def _invlpg_skips_sync(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, _, _, window = edited(guest)
    one.read(PAGE)
    one.store(window, NEW | USED)
    one.invlpg(PAGE)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("invlpg-misses-one-root", "E063 A.6", "INVLPG left the old entry under a previous root")
def _invlpg_misses_one_root(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("lru:1")
    entry = one.entry(b, PAGE)
    window = one.window(a, entry)
    one.visit(b, a)
    one.store(window, NEW | USED)
    one.invlpg(PAGE)
    self.expect(1 not in one.page(entry & ~0xFFF)["sptes"])
    return one


@scenario("flush-keeps-tlb", "E008 E057 E074", "a translation was used after the flush of a CR3 write")
def _flush_keeps_tlb(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _), _, window = edited(guest)
    one.read(PAGE)
    one.store(window, NEW | USED)
    one.cr3(a)
    self.expect(one.read(PAGE).value == NEW)
    return one


@scenario("no-remote-flush", "E075 F-15 F-42", "a frame that became a table stayed writable in the TLB of another vCPU")
def _no_remote_flush(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("lru:3", vcpus=2)
    frame = one.table()
    one.map(a, 0x7000, frame, USED)
    one.poke(one.entry(b, 1 << 30, 2), frame | RWU)
    one.vcpu = 1
    one.visit(a)
    one.store(0x7000, 0x402000 | USED)
    one.vcpu = 0
    one.cr3(b)
    one.read(1 << 30)
    one.vcpu = 1
    one.store(0x7000, NEW | USED)
    one.vcpu = 0
    one.cr3(b)
    self.expect(one.read(1 << 30).value == NEW)
    return one


# ------------------------------------------------------------------------------------------ roots


@scenario("root-hit-ignores-role", "E024", "a zapped root was switched to")
def _root_hit_ignores_role(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("lru:3")
    one.visit(b, a)
    one.run(OpKind.ZAP_GFN, b >> 12)
    one.cr3(b)
    self.expect(one.roots()[0][1] == INVALID_ROOT)
    one.visit(b)
    return one


@scenario("tag-only-on-hit", "E006 F-06", "the return to the CR3 before a miss took the lock")
def _tag_only_on_hit(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("seed")
    one.visit(a, b)
    before = one.locks()
    one.visit(a)
    self.expect(one.locks() == before)
    return one


@scenario("hit-keeps-flooding", "E020", "a root that was switched to kept its flooding count")
def _hit_keeps_flooding(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, b) = guest("lru:3")
    window = one.window(a, a)
    one.visit(b, a)
    one.store(window + 8 * 300, 0)
    assert one.page(a)["flooding"] == 1
    one.cr3(b)
    one.cr3(a)
    self.expect(one.page(a)["flooding"] == 0)
    return one


@scenario("obsolete-unannounced", "E149 E035", "the vCPU that uses a zapped root was not told")
def _obsolete_unannounced(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    one.visit(a)
    one.run(OpKind.ZAP_GFN, a >> 12)
    self.expect(one.state().requests & REQ_FREE_OBSOLETE_ROOTS)
    one.visit(a)
    return one


# ------------------------------------------------------------------------------------------ panics


def _survives(operation: Callable[[], object]) -> bool:
    try:
        operation()
    except BrokenError:
        return False
    return True


@scenario("panic-in-guest", "R11", "the machine was broken by a store")
def _panic_in_guest(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    one.visit(a)
    self.expect(_survives(lambda: one.store(PAGE, PANIC_VALUE)))
    return one


@scenario("panic-under-lock", "R11", "the machine was broken by the hypervisor's write")
def _panic_under_lock(self: Scenario, guest: GuestMaker) -> AnyGuest:
    one, (a, _) = guest("lru:3")
    one.visit(a)
    self.expect(_survives(lambda: one.poke(one.entry(a, PAGE), PANIC_VALUE)))
    return one
