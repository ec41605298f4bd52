"""The verdict tables: what two other checkers and the literature say. ``NAME | SETTING`` gives the verdicts under SC, TSO, RC11.

``genmc.json``: GenMC 0.10.3 on the protocols. ``herd.json``: herd7 7.58 on the C tests beside it (RC11). ``textbook.json``: the
verdicts of the textbook tests, from Alglave, Maranget and Tautschnig (2014) and Lahav and others (2017), written down by hand.
"""

import json
from pathlib import Path

from shadow_mmu.litmus import MODELS

DATA = Path(__file__).parent / "data"


def cases(table: str) -> dict[tuple[str, str, str], str]:
    """Return the verdict for each test, setting and model that a table states."""
    found = {}
    for key, verdicts in json.loads((DATA / f"{table}.json").read_text()).items():
        name, _, setting = key.partition("|")
        for model, verdict in zip(MODELS, verdicts, strict=True):
            if verdict != "-":
                found[name.strip(), setting.strip(), model] = verdict
    return found


def herd() -> dict[str, str]:
    """Return herd's word, Never or Sometimes, for each of its tests."""
    found = json.loads((DATA / "herd.json").read_text())
    assert isinstance(found, dict)
    return found
