"""The command line: ``shadow-mmu replay``, ``shadow-mmu run kpti``, ``shadow-mmu diff``.

Exit codes: 0 fine; 1 a mismatch, a violated invariant, a divergence; 2 wrong usage or a bad file; 130 interrupted.
Results go to stdout, everything else to stderr. With ``--json`` stdout is one JSON object.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

import click

from shadow_mmu.errors import ConfigError, ShadowMmuError
from shadow_mmu.litmus.cli import litmus
from shadow_mmu.policy import Policy

if TYPE_CHECKING:
    from shadow_mmu.report import Implementation, Mode

_P = ParamSpec("_P")
_R = TypeVar("_R")
_BAD, _REFUSED, _INTERRUPTED = 1, 2, 130
_MAX_RATE = 64.0


class _Refused(click.ClickException):
    exit_code = _REFUSED


def _typed_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn a typed error into its text on stderr and exit code 2; Ctrl-C into exit code 130."""

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except ShadowMmuError as error:
            raise _Refused(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(_INTERRUPTED)

    return wrapped


def _policies(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[Policy]:
    try:
        return Policy.parse_list(texts)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _policy_option(*default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--policy",
        "policies",
        multiple=True,
        default=default,
        show_default=True,
        callback=_policies,
        metavar="POLICY",
        help="locked, seed or lru:N with N = 0..16; may be given several times, each at most once.",
    )


def _rate(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    # Not a FloatRange: that lets NaN pass.
    if not 0 <= value <= _MAX_RATE:
        raise click.BadParameter(f"{value!r} is not in the range 0 to {_MAX_RATE:g}")
    return value


_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
_seed_option = click.option(
    "--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True, help="Seed of what is random."
)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on stderr if that is a terminal; gives the callback that moves it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  terminals only

    from shadow_mmu.tables import console  # noqa: PLC0415  the same

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def move(done: int) -> None:
            bar.update(task, completed=done)

        yield move


def _finish(*, ok: bool, interrupted: bool = False) -> NoReturn:
    if interrupted:
        click.echo("interrupted", err=True)
        sys.exit(_INTERRUPTED)
    sys.exit(0 if ok else _BAD)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shadow-mmu", prog_name="shadow-mmu")
def main() -> None:
    """KVM's x86 shadow MMU as a library: replay real guests, run workloads, compare core and model."""


main.add_command(litmus)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_policy_option("locked", "seed", "lru:3")
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
@_json_option
@_typed_errors
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
    with _progress(recording.name, recording.events * len(policies)) as progress:
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
    _finish(ok=report.ok, interrupted=report.interrupted)


@main.group()
def run() -> None:
    """Run a workload on OS threads, one for each vCPU."""


@run.command()
@click.option("--vcpus", type=click.IntRange(1, 1024), default=2, show_default=True, help="vCPUs, each a thread.")
@click.option("--processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes of each vCPU.")
@click.option(
    "--switches", type=click.IntRange(min=1), default=100_000, show_default=True, help="CR3 writes of each vCPU."
)
@click.option(
    "--edits",
    type=float,
    callback=_rate,
    default=0.0,
    show_default=True,
    help="Page-table edits for each switch on average.",
)
@_policy_option("locked", "seed")
@_seed_option
@click.option("--lock-times/--no-lock-times", default=True, show_default=True, help="Measure waiting for the mmu_lock.")
@_json_option
@_typed_errors
def kpti(
    *,
    vcpus: int,
    processes: int,
    switches: int,
    edits: float,
    policies: list[Policy],
    seed: int,
    lock_times: bool,
    as_json: bool,
) -> None:
    """Ping-pong between the kernel's and the user's CR3 of KPTI processes.

    Exit code 0: fine. 1: a guest fault or a violated invariant. 2: wrong usage. 130: interrupted; the policies that were
    finished are printed.
    """
    from shadow_mmu.tables import console, print_kpti  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.workloads.runner import run_kpti  # noqa: PLC0415  the same

    with _progress("kpti", round(vcpus * switches * (2 + 3 * edits)) * len(policies)) as progress:
        report = run_kpti(
            policies,
            vcpus=vcpus,
            processes=processes,
            switches=switches,
            edits=edits,
            seed=seed,
            lock_times=lock_times,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_kpti(report, console())
    _finish(ok=report.ok, interrupted=report.interrupted)


@main.command()
@click.option("--ops", type=click.IntRange(min=1), default=20_000, show_default=True, help="Operations to compare.")
@_seed_option
@click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Compare all state every N operations."
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tests/regressions"),
    show_default=True,
    help="Where a shrunk divergence is written.",
)
@_typed_errors
def diff(ops: int, seed: int, every: int, save: Path) -> None:
    """Run random operations on the core and on the model, and compare everything.

    Exit code 0: no divergence. 1: one was found; it is shrunk, printed and written as JSON. 2: wrong usage.
    """
    from shadow_mmu.differential import dump_stream, hunt  # noqa: PLC0415  --help needs no numpy

    with _progress("diff", ops) as progress:
        found = hunt(ops, seed=seed, every=every, progress=progress)
    if found is None:
        click.echo(f"{ops:,} operations from seed {seed}: no divergence")
        _finish(ok=True)
    text = dump_stream(found.stream, str(found.divergence))
    save.mkdir(parents=True, exist_ok=True)
    path = save / f"{found.divergence.what}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    path.write_text(text + "\n")
    click.echo(f"{found}\nwritten to {path}")
    _finish(ok=False)
