"""``shadow-mmu replay``: a recorded guest against policies."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from shadow_mmu.cli.common import finish, json_option, policy_option, progress_bar, typed_errors
from shadow_mmu.policy import Policy

if TYPE_CHECKING:
    from shadow_mmu.report import Implementation, Mode


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@policy_option("locked", "seed", "lru:3")
@click.option(
    "--mode",
    type=click.Choice(["ordered", "threads"]),
    default="ordered",
    show_default=True,
    help="ordered: all events in recorded order on one thread. threads: each vCPU on its own pinned OS thread.",
)
@click.option(
    "--model",
    type=click.Choice(["native", "python"]),
    default="native",
    show_default=True,
    help="The compiled core, or the pure-Python reference model (ordered mode only).",
)
@click.option("--check/--no-check", default=True, show_default=True, help="Compare each gpa with the recorded one.")
@click.option(
    "--audit-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Check the invariants every N events, not only at the end.",
)
@click.option("--lock-times", is_flag=True, help="Measure waiting for the mmu_lock and holding it.")
@json_option
@typed_errors
def replay(
    file: Path,
    policies: list[Policy],
    mode: str,
    model: str,
    *,
    check: bool,
    audit_every: int | None,
    lock_times: bool,
    as_json: bool,
) -> None:
    """Replay FILE, a recording of a real guest, and check every translation.

    Exit code 0: everything came out as recorded and every invariant held. 1: something did not. 2: wrong usage or a bad
    file. 130: interrupted; what was done so far is printed.
    """
    if model == "python" and mode == "threads":
        raise click.UsageError("--model python has no threads: use --mode ordered with it")
    from shadow_mmu.recording import load_recording  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.replay import replay_recording  # noqa: PLC0415  the same
    from shadow_mmu.tables import console, print_replay  # noqa: PLC0415  the same

    recording = load_recording(file)
    with progress_bar(recording.name, recording.events * len(policies)) as progress:
        report = replay_recording(
            recording,
            policies,
            mode=cast("Mode", mode),
            model=cast("Implementation", model),
            check=check,
            audit_every=audit_every,
            lock_times=lock_times,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_replay(report, console())
    finish(ok=report.ok, interrupted=report.interrupted)
