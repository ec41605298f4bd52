"""The SDM's verdict on one access, from the oracle of ``tests/matrix``, which was written from the SDM's tables alone."""

from collections.abc import Sequence

import numpy as np
from tests.matrix import sdm
from tests.unicorn.cases import Case
from tests.unicorn.judge import Seen


def sdm_says(case: Case, entries: Sequence[int]) -> Seen:
    """Return what the SDM has come of an access through these entries, from level 1 up."""
    mode = case.mode
    registers = sdm.Registers(mode.wp, mode.nx, mode.smep, mode.smap, mode.pkru)
    access = sdm.Access(case.kind, case.user, mode.ac, implicit=False)
    columns = [np.array([entry], np.uint64) for entry in entries]
    linear = np.array([case.gva], np.uint64)
    verdict = sdm.judge(sdm.PAGINGS[mode.paging.name], columns, linear, access, registers)
    if verdict.fault[0]:
        return Seen(None, int(verdict.error[0]), case.address)
    return Seen(int(verdict.gpa[0]), None, None)
