"""What the commands share: options, exit codes, the progress bar.

Exit codes: 0 fine; 1 a mismatch, a violated invariant, a divergence; 2 wrong usage or a bad file; 130 interrupted.
Results go to stdout, everything else to stderr. With ``--json`` stdout is one JSON object.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from shadow_mmu.errors import ConfigError, ShadowMmuError
from shadow_mmu.policy import LOCK_KINDS, OPTION_CHOICES, POLICY_CHOICES, Policy, with_locks

__all__ = ["finish", "json_option", "policy_option", "progress_bar", "rate", "seed_option", "typed_errors"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_BAD, _REFUSED, _INTERRUPTED = 1, 2, 130
_MAX_RATE = 64.0


class _Refused(click.ClickException):
    exit_code = _REFUSED


def typed_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
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


def policy_option(*default: str, every_lock: bool = False) -> Callable[[Callable[..., _R]], Callable[..., _R]]:
    """Return the options ``--policy`` and ``--lock``, each to be given any number of times, with these default policies.

    The command gets their product as ``policies``. With ``every_lock`` that is with each kind of lock unless told otherwise.
    """

    def decorate(command: Callable[..., _R]) -> Callable[..., _R]:
        @wraps(command)
        def combined(*, policies: list[Policy], locks: tuple[str, ...], **others: object) -> _R:
            named = any(policy.lock != LOCK_KINDS[0] for policy in policies)
            every = LOCK_KINDS if every_lock and not named else ()
            try:
                product = with_locks(policies, locks or every)
            except ConfigError as error:
                raise click.BadParameter(str(error), param_hint="'--lock'") from error
            return command(policies=product, **others)

        for option in (_lock_option("all" if every_lock else LOCK_KINDS[0]), _policy_options(default)):
            option(combined)
        return combined

    return decorate


def _policy_options(default: tuple[str, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--policy",
        "policies",
        multiple=True,
        default=default,
        show_default=True,
        callback=_policies,
        metavar="POLICY",
        help=f"{POLICY_CHOICES}; then options, each as ,NAME=VALUE with {OPTION_CHOICES}. May be given several times, each at most once.",
    )


def _lock_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--lock",
        "locks",
        multiple=True,
        type=click.Choice(LOCK_KINDS),
        help=f"Kind of mmu_lock; given several times, each policy is run with each.  [default: {default}]",
    )


def rate(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Check an option that is a rate: ``callback=rate``."""
    # Not a FloatRange: that lets NaN pass.
    if not 0 <= value <= _MAX_RATE:
        raise click.BadParameter(f"{value!r} is not in the range 0 to {_MAX_RATE:g}")
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True, help="Seed of what is random."
)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None] | None]:
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


def finish(*, ok: bool, interrupted: bool = False) -> NoReturn:
    """End the process with the exit code of its result."""
    if interrupted:
        click.echo("interrupted", err=True)
        sys.exit(_INTERRUPTED)
    sys.exit(0 if ok else _BAD)
