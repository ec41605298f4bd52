"""A guest in memory and what each of its vCPUs does: the form of every workload that runs on threads.

A program cannot branch, so a workload is made such that each of its accesses comes out the same however the vCPUs' programs
interleave. What an access must come to stands beside it, and :meth:`Workload.wrong` compares.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from shadow_mmu.errors import ConfigError
from shadow_mmu.ops import OP, Program
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode
from shadow_mmu.workloads.address_space import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_SHOWN: Final = 20
# 640 MB of records.
MAX_OPERATIONS: Final = 20_000_000
_MAX_WORK: Final = 100_000_000
NO_FAULTS: Final = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A guest in memory and a program for each of its vCPUs.

    Attributes
    ----------
    name : str
        ``kpti``, ``fork`` or ``threads``.
    image : Image
        The guest's memory at the start; as large as the machine's must be.
    programs : tuple of numpy.ndarray
        Of dtype ``OP``, one for each vCPU. A row with ``CHECK`` must reach the gpa ``expect``; a LOAD without it must load
        the value ``expect``.
    faults : tuple of numpy.ndarray
        By vCPU, of shape (n, 2): the rows that the guest means to run into a page fault, ascending, and the error code of
        each. Every other row must be OK.
    warm_up : tuple of int
        By vCPU: rows at the start that bring roots and translations into being, and are no part of a measurement.

    """

    name: str
    image: Image = field(repr=False)
    programs: tuple[Program, ...] = field(repr=False)
    faults: "tuple[npt.NDArray[np.int64], ...]" = field(repr=False)
    warm_up: tuple[int, ...]

    @property
    def memory(self) -> int:
        """Size of the guest's memory in bytes."""
        return int(self.image.words.nbytes)

    @property
    def operations(self) -> int:
        """Rows of all programs together."""
        return sum(map(len, self.programs))

    @property
    def switches(self) -> int:
        """CR3 writes of all vCPUs together, each vCPU's first not counted: what ``stats.cr3.writes`` is after a run."""
        return sum(int((one["kind"] == OpKind.WRITE_CR3).sum()) - 1 for one in self.programs)

    @property
    def meant_faults(self) -> int:
        """Page faults that the guest means to have, of all vCPUs together."""
        return sum(map(len, self.faults))

    def split(self) -> tuple[tuple[Program, ...], tuple[Program, ...]]:
        """Return the programs in two: the warm-up, and what is measured."""
        cut = list(zip(self.programs, self.warm_up, strict=True))
        return tuple(one[:at] for one, at in cut), tuple(one[at:] for one, at in cut)

    def with_work(self, nanoseconds: int) -> Self:
        """Return the same with so many nanoseconds of guest work after the first access behind each CR3 write.

        Raises
        ------
        ConfigError
            It is no whole number from 0 to 100,000,000.

        """
        if type(nanoseconds) is not int or not 0 <= nanoseconds <= _MAX_WORK:
            raise ConfigError(
                f"work is {nanoseconds!r}: expected a whole number of nanoseconds from 0 to {_MAX_WORK:,}"
            )
        if not nanoseconds:
            return self
        programs, faults, warm_up = [], [], []
        for program, meant, warm in zip(self.programs, self.faults, self.warm_up, strict=True):
            # The row that follows a CR3 write is an access in every workload: the guest entry that pays for the write.
            places = np.flatnonzero(program["kind"] == OpKind.WRITE_CR3) + 2
            row = np.zeros(len(places), OP)
            row["kind"], row["value"], row["vcpu"] = OpKind.WORK, nanoseconds, program["vcpu"][0]
            programs.append(np.insert(program, places, row))
            moved = meant.copy()
            moved[:, 0] += np.searchsorted(places, meant[:, 0], side="right")
            faults.append(moved)
            warm_up.append(warm + int(np.searchsorted(places, warm, side="left")))
        return replace(self, programs=tuple(programs), faults=tuple(faults), warm_up=tuple(warm_up))

    def wrong(self, outcomes: "Sequence[npt.NDArray[np.void]]") -> list[str]:
        """Compare what the programs came to with what they must come to; returns a line for each row that differs.

        Parameters
        ----------
        outcomes : sequence of numpy.ndarray
            By vCPU, of dtype ``OUTCOME``: those of a whole run.

        """
        found = []
        for vcpu, (rows, came, meant) in enumerate(zip(self.programs, outcomes, self.faults, strict=True)):
            if len(rows) != len(came):
                found.append(f"vCPU {vcpu}: {len(came):,} of {len(rows):,} operations done")
                continue
            codes = np.zeros(len(rows), np.uint8)
            codes[meant[:, 0]] = OutcomeCode.PAGE_FAULT
            errors = np.zeros(len(rows), np.uint32)
            errors[meant[:, 0]] = meant[:, 1]
            told = ((rows["flags"] & OpFlag.CHECK) != 0) | (rows["kind"] == OpKind.LOAD)
            wanted = np.where(codes == 0, rows["expect"], rows["addr"])
            differs = (came["code"] != codes) | (came["error"] != errors)
            differs |= (told | (codes != 0)) & (came["value"] != wanted)
            for row in np.flatnonzero(differs)[:_SHOWN].tolist():
                kind, code = OpKind(int(rows["kind"][row])).name, OutcomeCode(int(came["code"][row])).name
                found.append(
                    f"vCPU {vcpu}, operation {row}: {kind} {int(rows['addr'][row]):#x} came to {code} "
                    f"{int(came['value'][row]):#x} (error code {int(came['error'][row]):#x}), expected "
                    f"{OutcomeCode(int(codes[row])).name} {int(wanted[row]):#x} ({int(errors[row]):#x})"
                )
        return found
