"""The invariants of C.11 that apply to this machine, checked over the whole state (E162).

I10 (huge host pages) and what depends on generations do not apply. I14 leaves out entries that the host changed only where
the machine itself drops nothing, which here is nowhere: a hypervisor-side write drops what was made from the old words.
"""

from collections import Counter
from collections.abc import Iterator

from . import spte as sptes
from .constants import (
    ACC_U,
    ACC_W,
    ACC_X,
    DUMMY_ROOT,
    GPTE_A,
    GPTE_D,
    GPTE_P,
    GPTE_PS,
    INVALID_ROOT,
    KEY_MASK,
    KEY_SHIFT,
    PAGE_SHIFT,
    PFN_MASK,
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)
from .pae_roots import is_pae
from .pages import ShadowPage
from .permissions import gpte_access, leaf_access
from .role import CR0_WP, FOUR_BYTE, NO_PSE, child_role, gpte_gpa, key_of
from .roots import root_pages
from .vm import SharedState


def audit(vm: SharedState) -> list[str]:
    """Return every violation, each starting with the id of its invariant."""
    found: list[str] = []
    for check in (_links, _rmaps, _unsync_marks, _counts, _lookups, _leaves, _tables, _roots, _tlbs):
        found += check(vm)
    return found


def _links(vm: SharedState) -> Iterator[str]:
    """I2: parents are exactly the links. I13: a link leads to what the guest's entry says. I15: never to an invalid page."""
    real: dict[int, Counter[tuple[int, int]]] = {page_id: Counter() for page_id in vm.books.live}
    for page in vm.books.live.values():
        for index, spte in page.sptes.items() if page.level > 1 else ():
            child = vm.books.live.get(sptes.page_id(spte))
            if child is None or spte != child.hpa | sptes.LINK_BITS:
                yield f"I13: entry {index} of {page!r} is {spte:#x}, no link to a live page"
                continue
            real[child.id][page.id, index] += 1
            if child.invalid and not page.invalid:
                yield f"I15: entry {index} of {page!r} links to the invalid {child!r}"
            if child.role != child_role(
                page.role, child.access, direct=child.direct, index=index, key=key_of(child.role)
            ):
                yield f"I13: entry {index} of {page!r} links to {child!r}, whose role is no child's"
            elif not page.invalid:
                yield from _link_against_table(vm, page, index, child)
    for page in vm.books.live.values():
        if Counter((parent.id, index) for parent, index in page.parents) != real[page.id]:
            yield f"I2: parents of {page!r} are not the entries that link to it"


def _link_against_table(vm: SharedState, page: ShadowPage, index: int, child: ShadowPage) -> Iterator[str]:
    """I13: the gfn and the rights that the parent's table, or the parent's range, gives the child."""
    if page.direct:
        if child.gfn != page.gfn + (index << 9 * (page.level - 1)) or (child.access, key_of(child.role)) != (
            page.access,
            key_of(page.role),
        ):
            yield f"I13: entry {index} of {page!r} links to {child!r}, which is no part of it"
        return
    gpte = _gpte(vm, page, index)
    gfn = (gpte & PFN_MASK) >> PAGE_SHIFT
    large = page.level <= 3 and bool(gpte & GPTE_PS) and not page.role & NO_PSE
    if large:
        gfn &= ~((1 << 9 * (page.level - 1)) - 1)
        if page.role & FOUR_BYTE:  # 4 MiB, of which this entry maps one half; PSE-36
            gfn = gfn & ~1023 | (gpte >> 13 & 0xF) << 20 | (index & 1) << 9
    access_is_right = child.direct or child.access == page.access & gpte_access(gpte)
    key_is_right = key_of(child.role) == (_key(vm, gpte) if large else 0)
    if not (gpte & GPTE_P and child.direct == large and child.gfn == gfn and access_is_right and key_is_right):
        yield f"I13: entry {index} of {page!r} links to {child!r}, its gpte is {gpte:#x}"


def _key(vm: SharedState, gpte: int) -> int:
    """Return the protection key that a leaf of the guest has; of PAE's none has one, for the bits are reserved there."""
    return gpte >> KEY_SHIFT & KEY_MASK if vm.vcpus[0].cpu.pku else 0


def _gpte(vm: SharedState, page: ShadowPage, index: int) -> int:
    """Return the guest entry that an entry of a shadow page is made from."""
    return vm.memory.load(gpte_gpa(page.role, page.gfn, index), 4 if page.role & FOUR_BYTE else 8)


def _rmaps(vm: SharedState) -> Iterator[str]:
    """I1: the reverse map is exactly the present leaves, each under the gfn that it maps."""
    real: dict[int, Counter[tuple[int, int]]] = {}
    for page in vm.books.live.values():
        for index, spte in page.sptes.items() if page.level == 1 else ():
            gfn = sptes.leaf_gfn(spte)
            real.setdefault(gfn, Counter())[page.id, index] += 1
            if page.translations.get(index, (None,))[0] != gfn:
                yield f"I1: entry {index} of {page!r} maps gfn {gfn:#x}, recorded {page.translations.get(index)}"
    kept = {gfn: Counter((page.id, index) for page, index in refs) for gfn, refs in vm.books.rmaps.items()}
    for gfn in sorted(real.keys() | kept.keys()):
        if real.get(gfn) != kept.get(gfn):
            yield f"I1: the reverse map of gfn {gfn:#x} is not the leaves that map it"


def _unsync_marks(vm: SharedState) -> Iterator[str]:
    """I3: the count is the bitmap's. I4: only indirect level-1 pages are unsync. I5: all ways down to one are marked."""
    for page in vm.books.live.values():
        if page.unsync_bitmap.bit_count() != page.unsync_children:
            yield f"I3: {page!r} counts {page.unsync_children} unsync children, its bitmap {page.unsync_bitmap.bit_count()}"
        if page.unsync and (page.level != 1 or page.direct):
            yield f"I4: {page!r} is unsync"
        if page.unsync or page.unsync_children:
            for parent, index in page.parents:
                if not parent.unsync_bitmap >> index & 1:
                    yield f"I5: {page!r} is unsync or leads there, and entry {index} of {parent!r} is not marked"


def _counts(vm: SharedState) -> Iterator[str]:
    """I6: root counts. I7: live pages are valid or pinned. I8: indirect pages. I9: write tracking."""
    references = Counter(
        sptes.page_id(hpa)
        for vcpu in vm.vcpus
        for root in (vcpu.root, *vcpu.previous)
        for hpa in (root.entries if is_pae(root) else (root.hpa,))
        if hpa not in (0, INVALID_ROOT, DUMMY_ROOT)
    )
    track: Counter[int] = Counter()
    indirect = 0
    for page in vm.books.live.values():
        if page.root_count != references[page.id]:
            yield f"I6: {page!r} counts {page.root_count} roots, {references[page.id]} refer to it"
        if page.invalid and not page.root_count:
            yield f"I7: {page!r} is zapped, not pinned, and still there"
        if not page.invalid and not page.direct:
            indirect += 1
            track.update([page.gfn] if page.level > 1 else [])
    if indirect != vm.books.indirect_shadow_pages:
        yield f"I8: indirect_shadow_pages is {vm.books.indirect_shadow_pages}, there are {indirect}"
    if dict(track) != vm.books.write_track:
        yield f"I9: write tracking is {vm.books.write_track}, the upper tables are {dict(track)}"


def _lookups(vm: SharedState) -> Iterator[str]:
    """I15, I16: each live page is found under its gfn, once, and nothing else is."""
    listed = Counter(page.id for bucket in vm.books.by_gfn.values() for page in bucket)
    if listed != Counter(vm.books.live.keys()):
        yield "I16: the pages listed by gfn are not the live ones"
    for gfn, bucket in vm.books.by_gfn.items():
        if any(page.gfn != gfn or page.doomed for page in bucket):
            yield f"I16: a page of another gfn, or a freed one, is listed under gfn {gfn:#x}"
        if any(page.role & 1 << 11 for page in vm.books.valid_pages(gfn)):
            yield f"I15: a lookup of gfn {gfn:#x} finds an invalid page"


def _leaves(vm: SharedState) -> Iterator[str]:
    """I11: W needs MMU-writable needs host-writable, which is what the memslot says. I12: a synced table has no writable mapping."""
    synced = {p.gfn for p in vm.books.live.values() if not p.direct and not p.invalid and not p.unsync}
    for page in vm.books.live.values():
        for index, spte in page.sptes.items() if page.level == 1 else ():
            writable, mmu, host = spte & sptes.W, spte & sptes.MMU_WRITABLE, spte & sptes.HOST_WRITABLE
            if (writable and not mmu) or (mmu and not host) or not spte & sptes.SHADOW_PRESENT:
                yield f"I11: entry {index} of {page!r} is {spte:#x}"
            if bool(host) is vm.memory.is_read_only(sptes.leaf_gfn(spte)):
                yield f"I11: entry {index} of {page!r} is {spte:#x}, and the memslot of its gfn says otherwise"
            if mmu and sptes.leaf_gfn(spte) in synced:
                yield f"I12: entry {index} of {page!r} is {spte:#x}, and the gfn it maps holds a synced table"


def _tables(vm: SharedState) -> Iterator[str]:
    """I14: an entry of a synced page grants no more than its gpte, whose A is set."""
    for page in vm.books.live.values():
        if page.level != 1 or page.invalid or page.unsync:
            continue
        for index, spte in page.sptes.items():
            gfn = sptes.leaf_gfn(spte)
            if page.direct:
                allowed, target, key = page.access, page.gfn + index, key_of(page.role)
            else:
                gpte = _gpte(vm, page, index)
                # Nobody sets A and D where the guest may not write its table (E107).
                marked = gpte if not vm.memory.is_read_only(page.gfn) else gpte | GPTE_A | GPTE_D
                allowed = leaf_access(page.access, marked) if gpte & GPTE_P else 0
                if not marked & GPTE_A:
                    yield f"I14: entry {index} of {page!r} is {spte:#x}, and its gpte {gpte:#x} was never used"
                key = _key(vm, gpte)
                target = (gpte & PFN_MASK) >> PAGE_SHIFT if gpte & GPTE_P else -1
            granted = (
                (ACC_W if spte & sptes.W else 0) | (ACC_U if spte & sptes.U else 0) | (0 if spte & sptes.NX else ACC_X)
            )
            # CR0.WP=0: a supervisor's write made the page a writable supervisor page (B.5).
            supervisor_page = not page.role & CR0_WP and not granted & ACC_U
            if sptes.key_of(spte) != key or gfn != target or granted & ~allowed & ~(ACC_W if supervisor_page else 0):
                yield f"I14: entry {index} of {page!r} is {spte:#x}, its table allows {allowed} of gfn {target:#x}"


def _tlbs(vm: SharedState) -> Iterator[str]:
    """T2: in two dimensions no TLB entry outlives the direct leaf of its frame, unless a flush is pending."""
    for vcpu in vm.vcpus:
        if not vcpu.tdp or vcpu.requests & (REQ_TLB_FLUSH | REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH_GUEST):
            continue
        for page, spte in vcpu.tlb.entries.items():
            if sptes.leaf_gfn(spte) not in vm.books.rmaps:
                yield f"T2: vCPU {vcpu.index} reaches gfn {sptes.leaf_gfn(spte):#x} through page {page:#x}, which nothing maps"


def _roots(vm: SharedState) -> Iterator[str]:
    """I17: cached roots have a page and differ. I18: none is obsolete unless the request is pending."""
    for vcpu in vm.vcpus:
        cached = [root for root in vcpu.previous if root.hpa != INVALID_ROOT]
        keys: Counter[tuple[object, ...]] = Counter()
        for root in cached:
            if is_pae(root) and vm.policy.caches_pae_roots:
                keys[root.pgd, root.pdptrs, *(page.role for page in root_pages(vm, root))] += 1
                continue
            page = vm.books.live.get(sptes.page_id(root.hpa))
            if page is None:
                yield f"I17: vCPU {vcpu.index} caches root {root.hpa:#x}, which is no page"
                continue
            keys[root.pgd, page.role] += 1
        if vm.policy.kind == "lru" and any(count > 1 for count in keys.values()):
            yield f"I17: vCPU {vcpu.index} caches two roots of one CR3 and role"
        tables = [root.hpa for root in (vcpu.root, *cached) if is_pae(root)]
        if len(set(tables)) != len(tables):
            yield f"I17: two roots of vCPU {vcpu.index} are in one table"
        if is_pae(vcpu.root) and vcpu.root.pdptrs != vcpu.made_of:
            yield f"I17: the root of vCPU {vcpu.index} is made of other PDPTRs than those loaded"
        if vcpu.requests & REQ_FREE_OBSOLETE_ROOTS:
            continue
        known = [root for root in (vcpu.root, *cached) if is_pae(root) or sptes.page_id(root.hpa) in vm.books.live]
        for page in (page for root in known for page in root_pages(vm, root)):
            if page.invalid:
                yield f"I18: vCPU {vcpu.index} keeps the obsolete {page!r} and no request is pending"
