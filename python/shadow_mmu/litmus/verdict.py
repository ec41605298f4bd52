"""Run a litmus test: the question, the answer, and the execution that proves a bad one."""

from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from shadow_mmu.litmus.catalogue import Litmus, find
from shadow_mmu.litmus.explore import Bad, explore
from shadow_mmu.litmus.models import Model, model
from shadow_mmu.litmus.program import Program
from shadow_mmu.litmus.timeline import Timeline, timeline

__all__ = ["Verdict", "run"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model says about a litmus test.

    Attributes
    ----------
    test, weaken, model : str
        What was asked; ``weaken`` is empty for the test as it stands.
    outcome : {"ok", "BAD"}
        ``ok``: the forbidden outcome is in no execution. ``BAD``: it is in one.
    kind : {"claim", "outcome", "race", "stuck"}, optional
        What is wrong with the bad execution: a claim inside a thread, the outcome at the end, a data race or lifetime, a
        thread that waits for ever.
    reason : str, optional
        The same in words.
    executions, blocked, graphs : int
        Complete executions, those in which a thread still waits, and partial executions visited; up to the bad one.
    seconds : float
    timeline : Timeline, optional
        The bad execution step by step.

    """

    test: str
    weaken: str
    model: str
    outcome: Literal["ok", "BAD"]
    kind: str | None
    reason: str | None
    executions: int
    blocked: int
    graphs: int
    seconds: float
    timeline: Timeline | None

    @property
    def ok(self) -> bool:
        """Whether the forbidden outcome is impossible."""
        return self.outcome == "ok"

    def as_dict(self) -> dict[str, object]:
        """Return the verdict as plain values for JSON."""
        return {
            "test": self.test,
            "weaken": self.weaken,
            "model": self.model,
            "verdict": self.outcome,
            "kind": self.kind,
            "reason": self.reason,
            "executions": self.executions,
            "blocked": self.blocked,
            "graphs": self.graphs,
            "seconds": self.seconds,
            "timeline": None if self.timeline is None else self.timeline.as_dict(),
        }

    def _repr_html_(self) -> str:
        """Show the verdict and, for a bad one, the execution as a timeline, in a notebook."""
        from shadow_mmu.litmus.svg import draw  # noqa: PLC0415  only for those who look
        from shadow_mmu.text import html_text  # noqa: PLC0415  the same

        name = f"{self.test}, {self.weaken}" if self.weaken else self.test
        said = html_text(f"{name} under {self.model}: {self.outcome}{f' ({self.reason})' if self.reason else ''}")
        return said if self.timeline is None else said + draw(name, self.timeline)


def run(name: str | Litmus, weaken: str = "", model_name: str = "rc11") -> Verdict:
    """Explore a litmus test until a bad execution is found or there are no more.

    Parameters
    ----------
    name : str or Litmus
        A test of the catalogue (``p1_publish3`` or ``P1``), or a test of one's own.
    weaken : str
        One of its weakenings, or any other setting of its knobs (``"O_SPTE=RLX F_CHK=F_ACQ"``).
    model_name : {"sc", "tso", "rc11"}

    Raises
    ------
    ConfigError
        An unknown test, knob, value or model; the text names what there is.

    Examples
    --------
    >>> run("P1").outcome
    'ok'
    >>> run("P1", "O_SPTE=RLX", "tso").outcome, run("P1", "O_SPTE=RLX", "rc11").outcome
    ('ok', 'BAD')

    """
    test = find(name) if isinstance(name, str) else name
    rules = model(model_name)
    return judge(test.name, weaken, test.program(weaken), rules)


def judge(name: str, weaken: str, program: Program, rules: Model) -> Verdict:
    """Explore a program and put the result into words."""
    start = perf_counter()
    found = explore(program, rules)
    bad: Bad | None = found.bad
    return Verdict(
        test=name,
        weaken=" ".join(weaken.split()),
        model=rules.name,
        outcome="ok" if bad is None else "BAD",
        kind=None if bad is None else bad.kind,
        reason=None if bad is None else bad.text,
        executions=found.executions,
        blocked=found.blocked,
        graphs=found.graphs,
        seconds=perf_counter() - start,
        timeline=None if bad is None else timeline(program, bad),
    )
