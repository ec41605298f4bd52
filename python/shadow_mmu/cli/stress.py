"""``shadow-mmu stress``: every vCPU does everything at once, and each access is judged."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shadow_mmu.cli.common import finish, json_option, policy_option, progress_bar, seed_option, typed_errors
from shadow_mmu.policy import Policy

if TYPE_CHECKING:
    from shadow_mmu.stressing.plan import StressPlan as Plan

__all__ = ["stress"]


def _move(bar: Callable[[int], None], plan: "Plan", began: float, done: int) -> None:
    """Move the bar by steps, or by milliseconds where the run is as long as a time."""
    bar(done if plan.steps else round(1000 * (time.monotonic() - began)))


@click.command()
@click.option("--vcpus", type=int, default=2, show_default=True, help="vCPUs, each a thread: 1 to 256.")
@click.option("--seconds", type=float, help="How long each run lasts.  [default: 10]")
@click.option("--steps", type=int, help="Instead of --seconds: steps of each vCPU, a few operations each.")
@policy_option("lru:3")
@seed_option
@click.option(
    "--memory", default="0", metavar="SIZE", help="Guest memory, such as 8MiB.  [default: what the vCPUs need]"
)
@click.option(
    "--audit-every",
    type=int,
    default=20_000,
    show_default=True,
    metavar="N",
    help="Check the invariants every N steps of vCPU 0, with all at rest; 0: only at the end.",
)
@click.option("--turns", is_flag=True, help="All vCPUs on one thread, the next one drawn from the seed. Takes --steps.")
@click.option("--lock-times/--no-lock-times", default=True, show_default=True, help="Measure holds of the mmu_lock.")
@click.option("--patience", type=float, default=5.0, show_default=True, help="Seconds after which a vCPU is stuck.")
@click.option("--keep-going", is_flag=True, help="Do not stop at the first violation.")
@click.option("--model", "check_model", is_flag=True, help="At the end compare with the reference model's walks, too.")
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each run that found something into this folder.",
)
@click.option(
    "--replay",
    "again",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Run the seed and the configuration of a saved run again; the options above do not count then.",
)
@json_option
@typed_errors
def stress(
    *,
    vcpus: int,
    seconds: float | None,
    steps: int | None,
    policies: list[Policy],
    seed: int,
    memory: str,
    audit_every: int,
    turns: bool,
    lock_times: bool,
    patience: float,
    keep_going: bool,
    check_model: bool,
    save: Path | None,
    again: Path | None,
    as_json: bool,
) -> None:
    """Let every vCPU do everything at once, and judge each access by an oracle of legal translations.

    Exit code 0: nothing was wrong. 1: something was. 2: wrong usage. 130: interrupted; the figures so far are printed.
    """
    from shadow_mmu.stressing.files import load_plan, save_report  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.stressing.plan import StressPlan  # noqa: PLC0415  the same
    from shadow_mmu.stressing.runner import run_plan  # noqa: PLC0415  the same
    from shadow_mmu.stressing.table import print_stress  # noqa: PLC0415  the same
    from shadow_mmu.tables import console  # noqa: PLC0415  the same

    if again is not None:
        plans = [load_plan(again)]
        if not plans[0].turns:
            click.echo(
                "the same operations of each vCPU; on threads they meet differently each time "
                "(--turns, and the schedules of docs/stress.md, are the same every time)",
                err=True,
            )
    else:
        first = StressPlan(
            vcpus=vcpus,
            policy=policies[0],
            seconds=seconds,
            steps=steps,
            seed=seed,
            memory=memory,  # type: ignore[arg-type]  # the plan reads sizes
            audit_every=audit_every,
            turns=turns,
            lock_times=lock_times,
            patience=patience,
            keep_going=keep_going,
        )
        plans = [replace(first, policy=policy) for policy in policies]
    reports = []
    for plan in plans:
        total = plan.vcpus * plan.steps if plan.steps else round(1000 * (plan.seconds or 0))
        with progress_bar(f"stress {plan.policy}", total) as bar:
            move = None if bar is None else partial(_move, bar, plan, time.monotonic())
            reports.append(run_plan(plan, check_model=check_model, progress=move))
        if reports[-1].interrupted:
            break
    if as_json:
        click.echo(json.dumps({"results": [report.as_dict() for report in reports]}))
    else:
        print_stress(reports, console())
    for report in reports:
        if save is not None and not report.ok:
            click.echo(f"written to {save_report(report, save)}", err=True)
    finish(ok=all(report.ok for report in reports), interrupted=reports[-1].interrupted)
