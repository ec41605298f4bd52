r"""The machine as Python sees it: memory, vCPUs, programs, statistics. The work is done by the compiled core.

>>> from shadow_mmu import Vm
>>> with Vm(memory="1MiB", vcpus=1, policy="lru:3") as vm:
...     vm.memory.write(0x1000, (0x2007).to_bytes(8, "little"))
...     vm.memory.read(0x1000, 2)
b'\x07 '
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, Self, SupportsIndex

import numpy as np

from shadow_mmu import _native
from shadow_mmu.checks import whole
from shadow_mmu.config import VmConfig
from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.errors import ConfigError, ProgramError
from shadow_mmu.memory import Memory
from shadow_mmu.ops import NO_PAGES, OUTCOME, TRACE, Pages, Program, check_pages, validate
from shadow_mmu.stats import LockUser, RunReport, ShadowPage, Stats
from shadow_mmu.types import AccessKind, Memslot

if TYPE_CHECKING:
    import numpy.typing as npt

    from shadow_mmu.pagewalk import PageWalk
    from shadow_mmu.policy import Policy


class Vm:
    """A machine: memslots, vCPUs, a shadow MMU and its lock.

    Parameters
    ----------
    memory : str, int or list of Memslot
        Size of the one slot at gpa 0, or the slots.
    vcpus : int
        1 to 1,024.
    policy : Policy or str
        What a CR3 write does with the outgoing root: ``locked``, ``seed``, ``lru:0`` to ``lru:16``; and with ``,lock=KIND``
        what the mmu_lock is, with ``,link=ORDER`` how an unsync page is linked, with
        ``,pae_roots=cached`` that roots of 32-bit and PAE guests are cached, with ``,mmu=tdp`` that the hardware walks the
        guest's own tables, with ``,host=pae`` that the host has 32 bits (:class:`~shadow_mmu.policy.Policy`).
    tlb_entries : int
        Size of each vCPU's software TLB; 0 keeps nothing.
    cpu : CpuModel
        What processor each vCPU is (:class:`~shadow_mmu.cpu.CpuModel`).
    trace : bool
        Keep the events of the shadow MMU for :meth:`trace`.
    lock_times : bool
        Measure how long the mmu_lock is held and how long CR3 writes take.
    lock_watch : bool
        Let :meth:`lock_users` tell who waits for and who holds the mmu_lock; ``lock_times`` does so too.

    Attributes
    ----------
    memory : Memory
    vcpus : tuple of Vcpu
        The compiled vCPUs themselves. ``access``, ``load`` and ``store`` raise ``PageFault``, ``GeneralProtection`` or
        ``TripleFault``, and return :class:`MmioExit` where no memslot is reached, or a read-only one by a write.

    Raises
    ------
    ConfigError, MemoryRangeError
        A parameter is out of range; nothing was allocated.
    GuestMemoryError
        The host has not that much memory.

    """

    __slots__ = ("__weakref__", "_adding", "_closed", "_config", "_native", "memory", "vcpus")

    memory: Memory
    vcpus: tuple[_native.Vcpu, ...]

    def __init__(
        self,
        memory: str | int | Sequence[Memslot] = "128MiB",
        *,
        vcpus: int = 2,
        policy: "Policy | str" = "lru:3",
        tlb_entries: int = 1536,
        cpu: CpuModel = DEFAULT_CPU,
        trace: bool = False,
        lock_times: bool = False,
        lock_watch: bool = False,
    ) -> None:
        self._make(
            VmConfig(
                memory,
                vcpus=vcpus,
                policy=policy,
                tlb_entries=tlb_entries,
                cpu=cpu,
                trace=trace,
                lock_times=lock_times,
                lock_watch=lock_watch,
            )
        )

    @classmethod
    def from_config(cls, config: VmConfig) -> Self:
        """Make the machine that a configuration describes.

        Raises
        ------
        ConfigError
            ``config`` is none.
        GuestMemoryError
            The host has not that much memory.

        """
        if not isinstance(config, VmConfig):
            raise ConfigError(f"config is {config!r}: expected a VmConfig")
        vm = cls.__new__(cls)
        vm._make(config)
        return vm

    def _make(self, config: VmConfig) -> None:
        self._closed = False
        self._adding = threading.Lock()
        self._config = config
        self._native = _native.Vm(
            slots=[(slot.gpa, slot.bytes, slot.read_only) for slot in config.memory],
            vcpus=config.vcpus,
            policy=config.policy.name,
            **config.policy.options,
            tlb_entries=config.tlb_entries,
            cpu=config.cpu,
            trace=config.trace,
            lock_times=config.lock_times,
            lock_watch=config.lock_watch,
            cr3_times=config.lock_times,
        )
        self.memory = Memory(self._native, config.memory)
        self.vcpus = tuple(self._native.vcpus)

    @property
    def config(self) -> VmConfig:
        """What the machine was made of; memslots that were added later are in ``memory.slots``."""
        return self._config

    @property
    def policy(self) -> "Policy":
        """The root-cache policy."""
        return self._config.policy

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def stats(self) -> Stats:
        """What was counted so far, all vCPUs together and one by one."""
        return Stats.from_dict(self._native.stats())

    def run(
        self,
        programs: Sequence[Program],
        *,
        pages: Pages | None = None,
        outcomes: bool = False,
        pin: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> RunReport:
        """Run program ``i`` on vCPU ``i``, each on its own OS thread, with the GIL released.

        Parameters
        ----------
        programs : sequence of numpy.ndarray
            Up to one array of dtype ``OP`` for each vCPU; the ``vcpu`` field of the rows is not looked at.
        pages : numpy.ndarray, optional
            n x 512 words for HOST_PAGE rows.
        outcomes : bool
            Keep the outcome of every operation.
        pin : bool
            Pin each thread to one CPU.
        progress : callable, optional
            Called about ten times a second with the number of operations done; what it raises stops the run.

        Raises
        ------
        ProgramError
            A program is malformed (nothing ran), or the machine refused an operation (what was done stays done).
        KeyboardInterrupt
            Ctrl-C; the threads have stopped, what was done stays done.

        """
        if type(programs) not in (list, tuple):
            raise ProgramError(f"programs is {type(programs).__name__}: expected a list of arrays, one for each vCPU")
        if not 1 <= len(programs) <= len(self.vcpus):
            raise ProgramError(f"{len(programs)} programs: expected 1 to {len(self.vcpus)}, one for each vCPU")
        rows = NO_PAGES if pages is None else check_pages(pages)
        checked = [validate(one, pages=rows, what=f"program {index}") for index, one in enumerate(programs)]
        found = self._native.run(
            [one.view(np.uint8).data for one in checked],
            pages=rows.reshape(-1).view(np.uint8).data,
            outcomes=outcomes,
            pin=pin,
            poll=progress,
        )
        if found["interrupted"]:
            raise KeyboardInterrupt
        kept = found["outcomes"]
        return RunReport(
            seconds=found["seconds"],
            overlap=found["overlap"],
            starved=found["starved"],
            ops_done=tuple(found["ops_done"]),
            faults=found["faults"],
            outcomes=None if kept is None else tuple(np.frombuffer(one, OUTCOME) for one in kept),
        )

    def add_memslot(self, gpa: int, length: int, *, read_only: bool = False) -> Memslot:
        """Add memory. Returns the new slot.

        Parameters
        ----------
        gpa, length, read_only
            As those of a :class:`~shadow_mmu.Memslot`.

        Raises
        ------
        MemoryRangeError
            Misaligned, too high, or overlapping a slot; nothing was added.

        """
        slot = Memslot(gpa, length, read_only)
        with self._adding:
            self._native.add_memslot(slot.gpa, slot.bytes, slot.read_only)
            self.memory = Memory(self._native, tuple(sorted((*self.memory.slots, slot), key=lambda one: one.gpa)))
        return slot

    def lock_users(self) -> list[LockUser]:
        """Return who waits for and who holds the mmu_lock now: vCPUs in order, then the host.

        To be called at any time from any thread, while :meth:`run` works too; it takes no lock.

        Raises
        ------
        ConfigError
            The machine was made without ``lock_watch=True`` and without ``lock_times=True``.
        ClosedError
            The machine was closed.

        """
        users = self._native.lock_users()
        if users is None:
            raise ConfigError("the lock of this machine is not watched: expected lock_watch=True when it was made")
        return [LockUser(*user) for user in users]

    def audit(self) -> list[str]:
        """Check the invariants of the shadow MMU (E162) under the mmu_lock; returns one line for each violation."""
        return self._native.audit()

    def walk(
        self,
        gva: SupportsIndex,
        vcpu: SupportsIndex = 0,
        *,
        kind: AccessKind | None = None,
        user: bool = False,
        ac: bool = False,
        implicit: bool = False,
    ) -> "PageWalk":
        """Explain how ``gva`` is translated now: by the guest's own tables, and by the shadow or direct tables of the hardware.

        Nothing is changed: no root is loaded, no request serviced, no A or D set, nothing counted. Outside long mode the low
        32 bits of ``gva`` count. While other threads work on the machine, the two dimensions may be of different moments.

        Parameters
        ----------
        gva : int
        vcpu : int
            Whose registers, root and TLB.
        kind : {"read", "write", "fetch"}, optional
            Say what would come of such an access too, by the guest's tables.
        user, ac, implicit : bool
            How it would be made, as for ``vcpu.access``.

        Raises
        ------
        ConfigError
            ``gva`` is no unsigned 64-bit number, or there is no such vCPU or kind.
        VcpuBusyError
            A vCPU is being driven by another thread.
        ClosedError
            The machine was closed.

        """
        from shadow_mmu.model.permissions import make_context  # noqa: PLC0415  the model's rules are for those who ask
        from shadow_mmu.model.registers import Registers  # noqa: PLC0415  the same
        from shadow_mmu.pagewalk.access import ask  # noqa: PLC0415  the same
        from shadow_mmu.pagewalk.live import explain  # noqa: PLC0415  the same

        return explain(
            self.memory,
            self._native.shadow_path,
            lambda registers: make_context(Registers(*registers), self._config.cpu),
            whole("gva", gva, 0, (1 << 64) - 1),
            whole("vcpu", vcpu, 0, len(self.vcpus) - 1),
            asked=None if kind is None else ask(kind, user=user, ac=ac, implicit=implicit),
        )

    def shadow_pages(self) -> list[ShadowPage]:
        """Return a copy of every live shadow page, by ascending id."""
        return [ShadowPage.from_dict(page) for page in self._native.shadow_pages()]

    def trace(self) -> "npt.NDArray[np.void]":
        """Return, and forget, the events since the last call: an array of dtype ``TRACE``, empty without ``trace=True``."""
        return np.frombuffer(self._native.take_trace(), TRACE)

    def state_words(self) -> "npt.NDArray[np.uint64]":
        """Return the whole state as words in the layout of ``docs/machine.md`` §11."""
        return np.frombuffer(self._native.state_words(), np.dtype("<u8"))

    def close(self) -> None:
        """Free everything. Later use raises ``ClosedError``; closing twice does nothing."""
        if not self._closed:
            self._native.close()
            self._closed = True

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: a machine is not a value."""
        raise TypeError("a Vm cannot be copied or pickled: make another one of its config")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if not hasattr(self, "vcpus"):
            return "<Vm that could not be made>"
        state = "closed" if self._closed else f"{self.memory.size >> 10:,} KiB"
        return f"<Vm {state}, {len(self.vcpus)} vCPUs, policy {self.policy}>"
