"""Seeded random streams of operations, for running two machines against each other.

A stream is made of *scenes*: an access; a table edit with or without INVLPG, from the guest's side or the hypervisor's; a CR3
switch; a burst of stores to one upper table; a register toggle; what must fault. Everything lies in a
:class:`~shadow_mmu.workloads.world.World` so small that scenes meet each other all the time.

>>> stream = random_stream(seed=7, operations=100)
>>> stream == random_stream(seed=7, operations=100), len(stream.ops)
(True, 100)
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from shadow_mmu import ops as op
from shadow_mmu.errors import ConfigError
from shadow_mmu.ops import Op
from shadow_mmu.policy import Policy
from shadow_mmu.types import PAGE_SIZE, AccessKind, OpFlag, OpKind
from shadow_mmu.workloads.random_modes import Registers, enter, root_as_of
from shadow_mmu.workloads.registers import DrawnRegisters
from shadow_mmu.workloads.world import (
    DATA_GFNS,
    LOW_BYTES,
    OUTSIDE,
    PAGINGS,
    WINDOW_INDEX,
    MachineConfig,
    World,
    random_processor,
    random_slots,
)

_CR0_WP, _CR0_CD, _CR0_NW, _CR0_PG = 1 << 16, 1 << 30, 1 << 29, 1 << 31
_CR4_PGE, _CR4_LA57, _CR4_SMEP, _CR4_SMAP = 1 << 7, 1 << 12, 1 << 20, 1 << 21
_BIT63: Final = 1 << 63
_POLICIES: Final = ("locked", "seed", "lru:0", "lru:1", "lru:3", "lru:3", "lru:8")
_TLB_SIZES: Final = (0, 1, 2, 12, 24, 24, 96)
_KINDS: Final[tuple[AccessKind, ...]] = ("read", "write", "fetch")
# How far into a stream a triple fault may end a vCPU for good.
_LATE: Final = 0.95
# How many streams keep roots of four entries in their caches.
_CACHE_NARROW: Final = 0.4
# How many streams run in two dimensions, on the guest's own tables.
_DIRECT: Final = 0.15
# How many of the streams without long mode have a host without it.
_SMALL_HOST: Final = 0.4
_NARROW: Final = ("PAE", "32-bit")
# How many streams walk the same tables with entries of both widths.
_MIXED: Final = 0.3


@dataclass(frozen=True, slots=True)
class Stream:
    """A machine and what to do to it.

    Attributes
    ----------
    config : MachineConfig
    ops : tuple of Op
    pages : tuple of tuple of int
        What HOST_PAGE operations refer to: 512 words each.
    mixes_widths : bool
        The same tables are walked with entries of 4 and of 8 bytes. An oracle that leaves A and D out of its view cannot judge
        that: those of one width are frame bits of the other.

    """

    config: MachineConfig
    ops: tuple[Op, ...]
    pages: tuple[tuple[int, ...], ...]
    mixes_widths: bool = False


class _Generator:
    """The state of a stream that is being made."""

    def __init__(self, rng: Random, world: World, config: MachineConfig) -> None:
        self.rng, self.world, self.config = rng, world, config
        self.pages: list[list[int]] = []
        self.drawn = DrawnRegisters(rng, world, config)
        self.cr0, self.cr4, self.efer = self.drawn.cr0, self.drawn.cr4, self.drawn.efer
        self.mixes_widths = rng.random() < _MIXED
        self.late = False
        self.recent = [world.gva(rng)]

    def _vcpu(self) -> int:
        return self.rng.randrange(self.config.vcpus)

    def _root(self) -> int:
        low_bits = self.rng.choice((0, 0, 0, 0x8, 0x10, 0x18))
        return self.rng.choice(self.world.tables[self.world.levels]) << 12 | low_bits

    def _gva(self) -> int:
        """Draw a page, most often one of the last few, so that cached translations matter."""
        if self.rng.random() < 0.6:
            return self.rng.choice(self.recent)
        self.recent = [*self.recent[-7:], self.world.gva(self.rng)]
        return self.recent[-1]

    def _access(self, gva: int, vcpu: int) -> Op:
        rng = self.rng
        kind = rng.choice(_KINDS)
        implicit = kind == "read" and rng.random() < 0.05
        user = not implicit and rng.random() < 0.3
        return op.access(
            gva | rng.randrange(PAGE_SIZE), kind, vcpu=vcpu, user=user, ac=rng.random() < 0.5, implicit=implicit
        )

    def access(self) -> list[Op]:
        """Access one page once or twice, perhaps from two vCPUs."""
        gva = self._gva()
        return [self._access(gva, self._vcpu()) for _ in range(self.rng.choice((1, 1, 2)))]

    def data(self) -> list[Op]:
        """Load or store somewhere, which may well be a table."""
        rng, vcpu = self.rng, self._vcpu()
        size = rng.choice((1, 2, 4, 8, 8))
        offset = rng.randrange(PAGE_SIZE - size + 1) if rng.random() < 0.3 else self.world.place(rng, 0) & ~7
        gva = self._gva() + offset
        flags = {"user": rng.random() < 0.4, "ac": rng.random() < 0.5}
        if rng.random() < 0.4:
            return [op.load(gva, size, vcpu=vcpu, **flags)]
        return [op.store(gva, self._stored(size, rng.randint(1, self.world.levels)), size, vcpu=vcpu, **flags)]

    def _stored(self, size: int, level: int) -> int:
        return self.world.word(self.rng, level) & ((1 << 8 * size) - 1)

    def _edit(self, vcpu: int) -> tuple[Op, int]:
        """Return a guest store to a table through the window, and the gfn of the table."""
        rng, world = self.rng, self.world
        gfn = rng.choice(world.tables[1] if rng.random() < 0.5 else world.table_gfns)
        level = world.level_of[gfn]
        # The window itself is edited seldom: without it no table can be reached.
        if gfn in world.window.values() and rng.random() < 0.9:
            gfn, level = world.tables[1][0], 1
        size = rng.choice((*[world.paging.entry_bytes] * 4, 8, 4, 2, 1))
        place = world.place(rng, gfn)
        if rng.random() < 0.1:
            place += rng.randrange(8)
        if place % PAGE_SIZE + size > PAGE_SIZE:
            place -= 8
        value = self._stored(size, level)
        return op.store(world.through_window(place), value, size, vcpu=vcpu, ac=True), gfn

    def edit(self) -> list[Op]:
        """Edit a table from the guest, with INVLPG or without, by this vCPU or another; then access."""
        rng, vcpu, other = self.rng, self._vcpu(), self._vcpu()
        store, _ = self._edit(vcpu)
        gva = self._gva()
        scene = [store]
        if rng.random() < 0.5:
            scene.append(op.invlpg(gva | rng.randrange(PAGE_SIZE), vcpu=other))
        if rng.random() < 0.7:
            scene.append(self._access(gva, other))
        return scene

    def remap(self) -> list[Op]:
        """Use a page of the window, move it or change its rights by a guest store, perhaps INVLPG, use it again.

        Half of the time the frame stays: a change of rights alone makes no remote flush when it is synced, so it is INVLPG
        that must drop the translation.
        """
        rng, world, vcpu = self.rng, self.world, self._vcpu()
        shown = rng.choice(DATA_GFNS)
        gva = world.through_window(shown << 12)
        size = world.paging.entry_bytes
        slot = world.through_window(world.window[1] << 12 | size * shown)
        frame = shown if rng.random() < 0.5 else rng.choice(DATA_GFNS)
        bits = rng.choice((0x67, 0x67, 0x67, 0x27, 0x65, 0x63, (1 << 63 if size == 8 else 0) | 0x67, 0x66))
        scene = [
            self._access(gva, vcpu),
            op.store(slot, frame << 12 | bits, size, vcpu=self._vcpu(), ac=True),
        ]
        if rng.random() < 0.6:
            scene.append(op.invlpg(gva, vcpu=vcpu))
        return [*scene, self._access(gva, vcpu)]

    def switch(self) -> list[Op]:
        """Write CR3 and access something."""
        vcpu = self._vcpu()
        by_host = self.rng.random() < 0.05
        return [op.write_cr3(self._root(), vcpu=vcpu, host=by_host), self._access(self._gva(), vcpu)]

    def ping_pong(self) -> list[Op]:
        """Go to another root and back, perhaps with an edit between."""
        vcpu, first, second = self._vcpu(), self._root(), self._root()
        scene = [op.write_cr3(first, vcpu=vcpu), op.sync_tlb(vcpu=vcpu), op.write_cr3(second, vcpu=vcpu)]
        if self.rng.random() < 0.5:
            scene.append(self._edit(self._vcpu())[0])
        return [*scene, op.write_cr3(first, vcpu=vcpu), self._access(self._gva(), vcpu)]

    def invlpg(self) -> list[Op]:
        """Do INVLPG, seldom of an address that is not canonical."""
        gva = self._gva()
        return [op.invlpg(gva ^ (1 << 62 if self.rng.random() < 0.1 else 0), vcpu=self._vcpu())]

    def host(self) -> list[Op]:
        """Write from the hypervisor's side: a table entry, a whole table, a data word, outside memory."""
        rng, world, vcpu = self.rng, self.world, self._vcpu()
        gfn = rng.choice(world.table_gfns)
        level = world.level_of[gfn]
        chance = rng.random()
        if chance < 0.2 and gfn not in world.window.values():
            self.pages.append(world.page(rng, level))
            return [op.host_page(gfn << 12, len(self.pages) - 1, vcpu=vcpu)]
        if chance < 0.25:
            return [op.host_store(OUTSIDE, 1, vcpu=vcpu)]
        if chance < 0.3:
            return [op.host_store(rng.choice(DATA_GFNS) << 12, rng.getrandbits(64), vcpu=vcpu)]
        return [op.host_store(world.place(rng, gfn) & ~7, world.word(rng, level), vcpu=vcpu)]

    def repair(self) -> list[Op]:
        """Make the window whole again for one root, and one table whatever it is, so that the guest does not fall silent."""
        rng, world, vcpu = self.rng, self.world, self._vcpu()
        top = rng.choice(world.tables[world.levels])
        at = top << 12 | world.paging.entry_bytes * WINDOW_INDEX
        root = world.window_root() << 8 * (at & 4) | (world.word(rng, world.levels) & 0xFFFFFFFF if at & 4 else 0)
        scene = [op.host_store(at & ~7, root, vcpu=vcpu)]
        for level, gfn in world.window.items():
            scene.append(op.host_store(gfn << 12, world.window_page(level)[0], vcpu=vcpu))
        gfn = rng.choice([one for one in world.table_gfns if one not in world.window.values()])
        self.pages.append(world.page(rng, world.level_of[gfn]))
        return [*scene, op.host_page(gfn << 12, len(self.pages) - 1, vcpu=vcpu)]

    def flood(self) -> list[Op]:
        """Store to one upper table several times in a row, which zaps its shadow."""
        rng, world, vcpu = self.rng, self.world, self._vcpu()
        gfn = rng.choice(world.tables[rng.randint(2, world.levels)])
        gva = world.through_window(gfn << 12)
        level = world.level_of[gfn]
        size = world.paging.entry_bytes
        return [
            op.store(world.through_window(world.place(rng, gfn)), world.entry(rng, level), size, vcpu=vcpu, ac=True)
            if rng.random() < 0.7
            else op.access(gva, "write", vcpu=vcpu, ac=True)
            for _ in range(rng.randint(2, 5))
        ]

    def registers(self) -> list[Op]:
        """Toggle a bit of a register."""
        return self.drawn.toggle(self._vcpu())

    def keys(self) -> list[Op]:
        """Give protection keys other rights."""
        return self.drawn.keys(self._vcpu())

    def refused(self) -> list[Op]:
        """Do what faults, does nothing or is the host's mistake."""
        rng, world, vcpu = self.rng, self.world, self._vcpu()
        gva = self._gva()
        choices: tuple[list[Op], ...] = (
            [self._access(gva ^ 1 << 61, vcpu)],
            [op.write_cr3(self._root() | _BIT63, vcpu=vcpu)],
            [op.write_cr3(1 << self.config.cpu.maxphyaddr | self._root(), vcpu=vcpu)],
            [op.write_cr0((self.cr0[vcpu] | _CR0_NW) & ~_CR0_CD, vcpu=vcpu)],
            [op.write_cr0(self.cr0[vcpu] & ~_CR0_PG, vcpu=vcpu)],
            [op.write_cr4(self.cr4[vcpu] | 1 << 17, vcpu=vcpu)],
            [op.write_cr4(self.cr4[vcpu] ^ _CR4_LA57, vcpu=vcpu)],
            [op.write_efer(self.efer[vcpu] | 1 << 12, vcpu=vcpu)],
            [op.load(gva | 0xFFD, 8, vcpu=vcpu)],
            [op.zap_gfn(rng.choice(world.table_gfns), vcpu=vcpu)],
            [op.zap_gfn(rng.choice(self.world.tables[world.levels]), vcpu=vcpu), self._access(gva, vcpu)],
            [op.sync_tlb(vcpu=vcpu), op.work(10, vcpu=vcpu), Op(OpKind.NOP, vcpu=vcpu)],
        )
        return rng.choice(choices)

    def upheaval(self) -> list[Op]:
        """Turn paging off and on, change the number of levels, load a CR3 outside memory."""
        rng, vcpu = self.rng, self._vcpu()
        which = rng.randrange(4)
        if which == 0:
            off = self.cr0[vcpu] & ~_CR0_PG
            # Without paging an address is a gpa: a table, a data page, nothing.
            gpas = [rng.choice((*self.world.table_gfns, *DATA_GFNS, OUTSIDE >> 12)) << 12 for _ in range(3)]
            return [
                op.write_cr0(off, vcpu=vcpu, host=True),
                op.sync_tlb(vcpu=vcpu),
                *[self._access(gpa, vcpu) for gpa in gpas],
                op.store(gpas[0] & LOW_BYTES - 1 | 8, self._stored(8, 1), vcpu=vcpu),
                op.write_cr3(self._root(), vcpu=vcpu),
                op.invlpg(gpas[1], vcpu=vcpu),
                op.write_cr0(self.cr0[vcpu], vcpu=vcpu, host=True),
            ]
        if which == 1:
            there = op.write_cr4(self.cr4[vcpu] ^ _CR4_LA57, vcpu=vcpu, host=True)
            back = op.write_cr4(self.cr4[vcpu], vcpu=vcpu, host=True)
            return [there, self._access(self._gva(), vcpu), back]
        if which == 2 or rng.random() < 0.3:
            return self._other_mode(vcpu)
        if self.config.policy.startswith("lru") or self.late:
            outside = op.write_cr3(OUTSIDE, vcpu=vcpu)
            return [outside, self._access(self._gva(), vcpu), op.write_cr3(self._root(), vcpu=vcpu)]
        return []

    def _other_mode(self, vcpu: int) -> list[Op]:
        """Read this world's tables for a while as those of another paging mode, and come back."""
        rng = self.rng
        own = self.world.paging
        others = [one for one in PAGINGS.values() if one is not own]
        if not self.mixes_widths:
            others = [one for one in others if one.entry_bytes == own.entry_bytes]
        if not others:
            return []
        other = rng.choice(others)
        # Entries of another width make no sense of this world's tables: any root will do for them.
        same_width = other.entry_bytes == own.entry_bytes
        built, root = root_as_of(rng, self.world, other, vcpu) if same_width else ([], self._root())
        registers = Registers(self.cr0[vcpu], self.cr4[vcpu], self.efer[vcpu])
        scene = [*built, *enter(rng, registers, other, root, vcpu)]
        for _ in range(rng.randint(1, 6)):
            scene.append(self._access(self._gva(), vcpu))
            scene += self.switch() if rng.random() < 0.2 else []
            scene += self.invlpg() if rng.random() < 0.2 else []
            scene += self.host() if rng.random() < 0.2 else []
            if rng.random() < 0.2:
                scene.append(op.write_cr0(self.cr0[vcpu] ^ _CR0_WP, vcpu=vcpu))
            if rng.random() < 0.2:
                toggled = rng.choice((_CR4_SMEP, _CR4_SMAP, _CR4_PGE))
                scene.append(op.write_cr4(registers.cr4_in(other) ^ toggled, vcpu=vcpu))
            if rng.random() < 0.2:
                scene.append(op.write_cr3(root, vcpu=vcpu))
        return [*scene, *enter(rng, registers, own, self._root(), vcpu)]

    def scenes(self) -> tuple[list[Callable[[], list[Op]]], list[int]]:
        """Return the scenes and their weights."""
        weighted = (
            (self.access, 30),
            (self.data, 10),
            (self.edit, 22),
            (self.remap, 6),
            (self.switch, 12),
            (self.ping_pong, 6),
            (self.invlpg, 5),
            (self.host, 6),
            (self.repair, 3),
            (self.flood, 3),
            (self.registers, 3),
            (self.keys, 6 if self.config.cpu.pku else 1),
            (self.refused, 4),
            (self.upheaval, 5),
        )
        return [scene for scene, _ in weighted], [weight for _, weight in weighted]


def random_stream(
    seed: int, operations: int, *, policy: str | None = None, vcpus: int = 2, paging: str | None = None
) -> Stream:
    """Make a stream.

    Parameters
    ----------
    seed : int
        All else follows from it: policy, levels, TLB size, address width, operations.
    operations : int
        Length; the first few dozen fill the guest's tables.
    policy : str, optional
        Instead of a drawn one.
    vcpus : int
        How many vCPUs take turns.
    paging : str, optional
        ``4-level``, ``5-level``, ``PAE`` or ``32-bit`` instead of a drawn one. Every stream changes its mode now and then.

    Raises
    ------
    ConfigError
        ``operations`` is not positive, or there is no such paging mode.
    UnsupportedModeError
        The paging mode has long mode, and the policy none.

    """
    if operations <= 0:
        raise ConfigError(f"a stream of {operations} operations: expected at least one")
    if paging is not None and paging not in PAGINGS:
        raise ConfigError(f"no paging mode {paging!r}: expected one of {', '.join(PAGINGS)}")
    rng = Random(seed)  # noqa: S311  a reproducible stream is what is wanted
    options = Random(~seed)  # noqa: S311  the same; apart, so that a further option changes nothing else of a stream
    drawn = rng.choice(_POLICIES) + (",pae_roots=cached" if options.random() < _CACHE_NARROW else "")
    direct = options.random() < _DIRECT
    drawn += ",mmu=tdp" if direct else ""
    tlb_entries, cpu = rng.choice(_TLB_SIZES), random_processor(rng)
    mode = paging or rng.choice(("4-level", "4-level", "5-level", "PAE", "PAE", "32-bit"))
    if policy is None and mode in _NARROW and not direct and options.random() < _SMALL_HOST:
        drawn += ",host=pae"
    elif paging is None and policy is not None and Policy.parse(policy).host == "pae":
        mode = mode if mode in _NARROW else options.choice(_NARROW)
    config = MachineConfig(policy or drawn, vcpus, tlb_entries, cpu, random_slots(options))
    if mode not in _NARROW:
        Policy.parse(config.policy).require_long_mode(f"a stream of {mode} paging")
    world = World(mode, cpu)
    generator = _Generator(rng, world, config)
    made, generator.pages = world.setup(rng)
    for vcpu in range(vcpus):
        made.append(op.write_cr4(generator.cr4[vcpu], vcpu=vcpu, host=True))
        made.append(op.write_efer(generator.efer[vcpu], vcpu=vcpu, host=True))
        made.append(op.write_cr3(world.tables[world.levels][vcpu % 2] << 12, vcpu=vcpu))
    scenes, weights = generator.scenes()
    while len(made) < operations:
        generator.late = len(made) > _LATE * operations
        made += rng.choices(scenes, weights)[0]()
    assert all(one.flags & ~int(OpFlag.HOST | OpFlag.AC | OpFlag.USER | OpFlag.IMPLICIT) == 0 for one in made)
    assert all(gfn << 12 < LOW_BYTES for gfn in world.table_gfns)
    return Stream(config, tuple(made[:operations]), tuple(map(tuple, generator.pages)), generator.mixes_widths)
