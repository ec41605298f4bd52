"""Contention: workloads over kinds of lock, policies and numbers of vCPUs; one table and one plot.

:mod:`.measure` runs them, :mod:`.report` is what comes back, :mod:`.table` and :mod:`.plots` show it. The same question with
clean samples only, and without an interpreter around it, is ``benches/contention.rs``.
"""

from shadow_mmu.contend.measure import contend
from shadow_mmu.contend.report import ContentionReport, ContentionRow

__all__ = ["ContentionReport", "ContentionRow", "contend"]
