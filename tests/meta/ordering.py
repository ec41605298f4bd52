"""What docs/memory-ordering.md and docs/protocol-verdicts.md say, taken apart."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.meta.tree import ROOT

PAGE = ROOT / "docs" / "memory-ordering.md"
VERDICTS = ROOT / "docs" / "protocol-verdicts.md"
FIELDS = ("writes", "reads", "needed", "weakened", "KVM", "models", "twins", "litmus")
# A field may name nothing only for a reason that is written down.
_NONE = re.compile(r"none: \S.{25,}")
MODELS = ("sc", "tso", "rc11")


@dataclass(frozen=True)
class Quoted:
    """One line of a verdict table; ``name`` is the model or twin beside it, if the table has that column."""

    litmus: str
    weaken: str
    verdicts: tuple[str, ...]
    name: str = ""


@dataclass
class Section:
    """What the page has on one tag."""

    tag: str
    fields: dict[str, str] = field(default_factory=dict)
    quoted: list[Quoted] = field(default_factory=list)

    def names(self, of: str) -> list[str]:
        """Return the names in a field, none if it says ``none: ...``."""
        text = self.fields.get(of, "")
        return [] if text.startswith("none:") else re.findall(r"`([^`]+)`", text)


def cells(line: str) -> list[str]:
    """Return the cells of a table's line."""
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []


def quoted(line: str) -> Quoted | None:
    """Return a line of a verdict table, ``None`` for any other line."""
    parts = [part.strip("`") for part in cells(line)]
    if len(parts) not in {5, 6} or not all(part in {"ok", "BAD"} for part in parts[2:5]):
        return None
    return Quoted(parts[0], "" if parts[1] == "-" else parts[1], tuple(parts[2:5]), *parts[5:])


def sections(text: str) -> list[Section]:
    """Return the sections of the tags."""
    found: list[Section] = []
    for line in text.splitlines():
        if line.startswith("#"):
            heading = re.fullmatch(r"### `([a-z-]+)`", line)
            found.append(Section(heading[1] if heading else ""))
        elif found and found[-1].tag:
            if (verdict := quoted(line)) is not None:
                found[-1].quoted.append(verdict)
            elif len(parts := cells(line)) == 2:
                found[-1].fields.setdefault(parts[0], parts[1])
    return [section for section in found if section.tag]


def index(text: str) -> list[str]:
    """Return the tags in the table at the top."""
    return re.findall(r"^\| \[`([a-z-]+)`\]\(#\1\) \|", text, re.MULTILINE)


def table(text: str) -> list[Quoted]:
    """Return the lines of the page of verdicts."""
    return [verdict for line in text.splitlines() if (verdict := quoted(line)) is not None]


def gaps(section: Section, right: Iterable[str], twins: Iterable[str]) -> list[str]:
    """Return what a section lacks: a field, a reason, a name that exists, a verdict."""
    wrong = [f"no field {name!r}" for name in FIELDS if not section.fields.get(name, "").strip(" -") and name != "KVM"]
    if "KVM" not in section.fields:
        wrong.append("no field 'KVM'")
    for name, known in (("models", set(right)), ("twins", set(twins)), ("litmus", None)):
        text, named = section.fields.get(name, ""), section.names(name)
        if text and not named and not _NONE.fullmatch(text):
            wrong.append(f"{name}: {text!r} names nothing and gives no reason")
        wrong += [f"{name}: there is no {one!r}" for one in named if known is not None and one not in known]
    for litmus in section.names("litmus"):
        mine = {line.weaken: line.verdicts for line in section.quoted if line.litmus == litmus}
        if mine.get("", ("",))[-1] != "ok":
            wrong.append(f"litmus {litmus}: no verdict of the right form, or it is not ok")
        if not any(verdicts[-1] == "BAD" for weaken, verdicts in mine.items() if weaken):
            wrong.append(f"litmus {litmus}: no weakened form that is BAD")
    wrong += [
        f"a verdict of {line.litmus}, which the field does not name"
        for line in section.quoted
        if line.litmus not in section.names("litmus")
    ]
    return [f"{section.tag}: {text}" for text in wrong]


def disagreements(line: Quoted, right: Iterable[str], twins: Iterable[str]) -> list[str]:
    """Return what is wrong with the name beside a verdict: ``ok`` is a model that holds, ``BAD`` a twin that is caught."""
    if line.name.startswith("none:"):
        return [] if _NONE.fullmatch(line.name) else [f"{line.litmus} {line.weaken}: {line.name!r} is no reason"]
    wanted = set(right if line.verdicts[-1] == "ok" else twins)
    return [] if line.name in wanted else [f"{line.litmus} {line.weaken}: {line.name!r} is not what shows this"]
