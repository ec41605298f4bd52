"""Shadow pages and their books: lookup by gfn, parent links, reverse map, write tracking (C.1, C.3, C.7).

Everything here is done under the mmu_lock. Functions that need a TLB flush say so in what they return; nobody flushes here.
"""

from . import role as roles
from . import spte as sptes
from .constants import ENTRIES, SHADOW_BASE_PFN


class ShadowPage:
    """One shadow page: 512 entries, of which only the non-zero ones are kept.

    Parameters
    ----------
    page_id : int
        Its number; the host-physical address follows from it.
    gfn : int
        The table that it shadows or, if direct, the first frame that it maps.
    role : int
        The role word.

    """

    __slots__ = (
        "direct",
        "doomed",
        "flooding",
        "gfn",
        "id",
        "level",
        "parents",
        "role",
        "root_count",
        "sptes",
        "translations",
        "unsync",
        "unsync_bitmap",
        "unsync_children",
    )

    def __init__(self, page_id: int, gfn: int, role: int) -> None:
        self.id = page_id
        self.gfn = gfn
        self.role = role
        self.level = role & roles.LEVEL_MASK
        self.direct = bool(role & roles.DIRECT)
        self.sptes: dict[int, int] = {}
        """The non-zero entries by index."""
        self.translations: dict[int, tuple[int, int]] = {}
        """(gfn, access) that each leaf was made from (KVM's shadowed_translation)."""
        self.parents: list[tuple[ShadowPage, int]] = []
        """The entries that link here."""
        self.unsync = False
        self.unsync_children = 0
        self.unsync_bitmap = 0
        self.flooding = 0
        self.root_count = 0
        self.doomed = False
        """On a zap list: off the books, freed at the commit."""

    @property
    def invalid(self) -> bool:
        """Whether the page was zapped."""
        return bool(self.role & roles.INVALID)

    @property
    def access(self) -> int:
        """Rights inherited from the entries above."""
        return self.role >> roles.ACCESS_SHIFT & 7

    @property
    def hpa(self) -> int:
        """Its host-physical address."""
        return sptes.page_hpa(self.id)

    def __repr__(self) -> str:
        """Show what tells the page apart."""
        return f"<ShadowPage {self.id} level {self.level} gfn {self.gfn:#x} role {self.role:#x}>"


class PageBooks:
    """All shadow pages of a machine, and what must be found from a gfn or an address."""

    __slots__ = ("by_gfn", "free_ids", "indirect_shadow_pages", "live", "next_id", "peak", "rmaps", "write_track")

    def __init__(self) -> None:
        self.live: dict[int, ShadowPage] = {}
        """Every page by id, pinned invalid ones included."""
        self.by_gfn: dict[int, list[ShadowPage]] = {}
        """Oldest first; lookups go from the end."""
        self.rmaps: dict[int, list[tuple[ShadowPage, int]]] = {}
        """The leaf entries that map each gfn."""
        self.write_track: dict[int, int] = {}
        """How many valid indirect pages above level 1 shadow each gfn: those stay write-protected (C.5)."""
        self.indirect_shadow_pages = 0
        self.free_ids: list[int] = []
        self.next_id = 0
        self.peak = 0

    def new_page(self, gfn: int, role: int) -> ShadowPage:
        """Make an empty page: the last freed id or the next never-used one."""
        if self.free_ids:
            page_id = self.free_ids.pop()
        else:
            page_id, self.next_id = self.next_id, self.next_id + 1
        page = self.live[page_id] = ShadowPage(page_id, gfn, role)
        self.by_gfn.setdefault(gfn, []).append(page)
        self.peak = max(self.peak, len(self.live))
        return page

    def free_page(self, page: ShadowPage) -> None:
        """Give a zapped page back; its id is the next to be used."""
        del self.live[page.id]
        bucket = self.by_gfn[page.gfn]
        bucket.remove(page)
        if not bucket:
            del self.by_gfn[page.gfn]
        self.free_ids.append(page.id)

    def valid_pages(self, gfn: int) -> list[ShadowPage]:
        """Return the valid pages of a gfn, newest first."""
        return [page for page in reversed(self.by_gfn.get(gfn, ())) if not page.role & roles.INVALID]

    def indirect_pages(self, gfn: int) -> list[ShadowPage]:
        """Return the valid pages that shadow the guest table at ``gfn``, newest first."""
        bucket = self.by_gfn.get(gfn)
        if not bucket:
            return []
        return [page for page in reversed(bucket) if not page.role & (roles.INVALID | roles.DIRECT)]

    def page_at(self, spte_or_hpa: int) -> ShadowPage:
        """Return the page that a link or a root leads to."""
        return self.live[(spte_or_hpa >> 12 & 0xFFFFFFFFFF) - SHADOW_BASE_PFN]

    def child(self, page: ShadowPage, index: int) -> ShadowPage | None:
        """Return the page linked at an entry above level 1, if any."""
        spte = page.sptes.get(index)
        return None if spte is None else self.page_at(spte)

    def account(self, page: ShadowPage) -> None:
        """Count a new indirect page (KVM: account_shadowed)."""
        self.indirect_shadow_pages += 1
        if page.level > 1:
            self.write_track[page.gfn] = self.write_track.get(page.gfn, 0) + 1

    def unaccount(self, page: ShadowPage) -> None:
        """Undo :meth:`account`; nothing becomes writable by it."""
        self.indirect_shadow_pages -= 1
        if page.level > 1:
            self.write_track[page.gfn] -= 1
            if not self.write_track[page.gfn]:
                del self.write_track[page.gfn]

    def write_protect(self, gfn: int) -> bool:
        """Take W and MMU-writable from every leaf that maps the gfn; true if TLBs may hold the old rights."""
        flush = False
        for page, index in self.rmaps.get(gfn, ()):
            old = page.sptes[index]
            if old & (sptes.W | sptes.MMU_WRITABLE):
                page.sptes[index] = new = old & ~(sptes.W | sptes.MMU_WRITABLE)
                flush = flush or sptes.loses_write(old, new)
        return flush

    def add_leaf(self, page: ShadowPage, index: int, gfn: int, access: int) -> int:
        """Record what a new leaf was made from and enter it into the reverse map; return the length of that."""
        page.translations[index] = (gfn, access)
        rmap = self.rmaps.setdefault(gfn, [])
        rmap.append((page, index))
        return len(rmap)

    def drop_leaf(self, page: ShadowPage, index: int) -> None:
        """Clear a present leaf."""
        del page.sptes[index]
        gfn, _ = page.translations.pop(index)
        rmap = self.rmaps[gfn]
        _remove(rmap, page, index)
        if not rmap:
            del self.rmaps[gfn]

    def drop_all_leaves(self, gfn: int) -> None:
        """Clear every leaf that maps the gfn (the reverse map grew too long)."""
        for page, index in self.rmaps.pop(gfn):
            del page.sptes[index], page.translations[index]

    def add_link(self, parent: ShadowPage, index: int, child: ShadowPage) -> None:
        """Write a link into an empty entry."""
        parent.sptes[index] = child.hpa | sptes.LINK_BITS
        child.parents.append((parent, index))

    def drop_link(self, parent: ShadowPage, index: int) -> None:
        """Clear a present link. The parent's unsync bit stays; a walk clears it."""
        child = self.page_at(parent.sptes.pop(index))
        _remove(child.parents, parent, index)

    def drop_entry(self, page: ShadowPage, index: int) -> bool:
        """Clear an entry whatever it is; true if it was present."""
        if index not in page.sptes:
            return False
        if page.level == 1:
            self.drop_leaf(page, index)
        else:
            self.drop_link(page, index)
        return True


def _remove(refs: list[tuple[ShadowPage, int]], page: ShadowPage, index: int) -> None:
    """Remove an entry from a list of entries: the last one moves into the hole."""
    at = refs.index((page, index))
    last = refs.pop()
    if at < len(refs):
        refs[at] = last


def unsync_bits(page: ShadowPage) -> list[int]:
    """Return the set bits of the unsync bitmap, ascending."""
    bitmap = page.unsync_bitmap
    bits = []
    while bitmap:
        low = bitmap & -bitmap
        bits.append(low.bit_length() - 1)
        bitmap ^= low
    assert not bits or bits[-1] < ENTRIES
    return bits
