"""A recording that is not one gets a typed error that names file, row, value and what was expected."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.replay import small
from tests.replay.small import Arrays

from shadow_mmu import RecordingError, UnsupportedModeError, load_recording

HUGE = (1 << 64) - 8


def cell(name: str, row: int, value: int) -> Callable[[Arrays], None]:
    """Change one number."""

    def change(arrays: Arrays) -> None:
        arrays[name][row] = value

    return change


def whole(name: str, change: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    """Replace one array."""

    def replace(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return replace


def meta(**changes: object) -> Callable[[Arrays], None]:
    """Change what the recorder says of the guest."""
    return whole("meta", lambda _: np.array(json.dumps({**small.META, **changes})))


BROKEN: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "missing array": (lambda a: a.pop("gva"), "'gva' is missing"),
    "missing meta": (lambda a: a.pop("meta"), "'meta' is missing"),
    "shorter array": (whole("cpu", lambda a: a[:-1].copy()), "'cpu' has 18 rows, expected 19"),
    "no rows": (lambda a: a.update({n: v[:0].copy() for n, v in a.items() if v.ndim == 1}), "no events"),
    "two dimensions": (whole("addr", lambda a: a.reshape(1, -1)), "'addr' has shape"),
    "narrow pages": (whole("page_data", lambda a: a[:, :511].copy()), "expected .n, 512."),
    "flat pages": (whole("page_data", lambda a: a.reshape(-1)), "expected .n, 512."),
    "fortran pages": (whole("page_data", np.asfortranarray), "Fortran"),
    "wide kind": (whole("kind", lambda a: a.astype(np.uint16)), "dtype '<u2', expected '.u1'"),
    "signed addr": (whole("addr", lambda a: a.astype(np.int64)), "dtype '<i8', expected '<u8'"),
    "float value": (whole("value", lambda a: a.astype(np.float64)), "dtype '<f8'"),
    "big-endian value": (whole("value", lambda a: a.astype(">u8")), "dtype '>u8', expected '<u8'"),
    "big-endian pages": (whole("page_data", lambda a: a.astype(">u8")), "dtype '>u8'"),
    "object array": (whole("addr", lambda a: a.astype(object)), "dtype '.O'"),
    "structured array": (whole("addr", lambda a: a.view([("x", "<u8")])), "expected '<u8'"),
    "unknown kind": (cell("kind", 10, 12), "row 10: 'kind' is 12, expected 1..11"),
    "kind zero": (cell("kind", 3, 0), "row 3: 'kind' is 0, expected 1..11"),
    "cpu out of range": (cell("cpu", 10, 2), "row 10: 'cpu' of a kind-9 row is 2, expected a vCPU below 2"),
    "page row out of range": (
        cell("value", 6, 4),
        "row 6: 'value' of a kind-1 row is 0x4, expected a row of page_data below 4",
    ),
    "huge page row": (cell("value", 6, HUGE), "row 6: 'value'"),
    "user neither 0 nor 1": (cell("user", 9, 2), "row 9: 'user'"),
    "page arrival misaligned": (cell("addr", 4, 0x11008), "row 4: 'addr'.*page-aligned"),
    "page arrival outside memory": (cell("addr", 4, 1 << 20), "row 4: 'addr'.*below 0x100000"),
    "store misaligned": (cell("addr", 12, small.PT + 4), "row 12: 'addr'.*8-byte aligned"),
    "store outside memory": (cell("addr", 12, HUGE), "row 12: 'addr'"),
    "store gva misaligned": (cell("gva", 12, small.PT_GVA + 1), "row 12: 'gva'"),
    "store gva not canonical": (cell("gva", 12, 1 << 47), "row 12: 'gva'.*canonical"),
    "access not canonical": (cell("addr", 9, 1 << 47), "row 9: 'addr' of a kind-7 row is 0x800000000000.*canonical"),
    "fetch not canonical": (cell("addr", 10, 0xFFFF << 47), "row 10: 'addr'.*canonical"),
    "recorded gpa huge": (cell("value", 9, HUGE), "row 9: 'value'.*52 bits"),
    "cr3 outside memory": (cell("addr", 7, 1 << 20), "row 7: 'addr'.*page table below"),
    "cr3 huge": (cell("addr", 7, HUGE), "row 7: 'addr'"),
    "cr0 huge": (cell("addr", 0, 1 << 32 | 0x80050033), "row 0: 'addr'.*bits 63:32"),
    "cr4 reserved": (cell("addr", 1, 1 << 17 | 0x20), "row 1: 'addr'.*CR4 bits"),
    "cr4 with LA57": (cell("addr", 1, 1 << 12 | 0x20), "row 1: 'addr'.*LA57 clear"),
    "efer reserved": (cell("addr", 2, 0xF01), "row 2: 'addr'.*EFER bits"),
    "access before cr3": (
        cell("kind", 8, small.MARK),
        "row 10: 'kind' is 9, expected no access of vCPU 1 before its first CR3",
    ),
    "invlpg before cr3": (
        lambda a: (cell("kind", 8, small.MARK)(a), cell("kind", 10, small.INVLPG)(a)),
        "row 10: 'kind' is 6, expected no access of vCPU 1",
    ),
    "meta not JSON": (whole("meta", lambda _: np.array("{")), "'meta' is not JSON"),
    "meta not an object": (whole("meta", lambda _: np.array("[1]")), "'meta' is a JSON list"),
    "meta bytes": (whole("meta", lambda _: np.array(b"{}")), "'meta' is .S2"),
    "meta array": (whole("meta", lambda _: np.array(["{}"])), "'meta' is"),
    "meta without paging": (whole("meta", lambda _: np.array('{"vcpus": 2, "ram_bytes": 4096}')), "no 'paging'"),
    "paging unknown": (meta(paging="6-level"), "'paging' is '6-level'"),
    "paging unhashable": (meta(paging=["4-level"]), "'paging' is"),
    "no vcpus": (meta(vcpus=0), "'vcpus' is 0, expected a whole number from 1 to 1,024"),
    "too many vcpus": (meta(vcpus=1025), "'vcpus' is 1025"),
    "vcpus a float": (meta(vcpus=2.0), "'vcpus' is 2.0"),
    "vcpus a bool": (meta(vcpus=True), "'vcpus' is True"),
    "no memory": (meta(ram_bytes=0), "'ram_bytes' is 0"),
    "odd memory": (meta(ram_bytes=4097), "'ram_bytes' is 4097"),
    "negative memory": (meta(ram_bytes=-4096), "'ram_bytes' is -4096"),
    "absurd memory": (meta(ram_bytes=1 << 47), "'ram_bytes' is"),
    "5 levels by meta only": (meta(paging="5-level"), "row 1: 'addr'.*LA57 set"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recording_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    arrays = small.arrays()
    change, expected = BROKEN[case]
    change(arrays)
    path = small.write(tmp_path / "broken.npz", arrays)
    with pytest.raises(RecordingError, match=expected) as caught:
        load_recording(path)
    assert str(path) in str(caught.value)


def test_what_is_not_broken_loads(tmp_path: Path) -> None:
    recording = load_recording(small.write(tmp_path / "whole.npz", small.arrays()))
    assert (recording.name, recording.events, recording.vcpus, recording.ram_bytes) == ("whole", 19, 2, 1 << 20)
    assert not recording.addr.flags.writeable
    assert repr(recording) == "<Recording whole: 19 events, 2 vCPUs, 4-level>"


def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns of the very thing
        path = small.write(tmp_path / "twice.npz", small.arrays(), twice="addr")
    with pytest.raises(RecordingError, match=r"'addr.npy' is there 2 times"):
        load_recording(path)


@pytest.mark.parametrize("size", [0, 1, 100, 1000, -1, -30])
def test_a_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    path = small.write(tmp_path / "cut.npz", small.arrays())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RecordingError, match="unreadable or truncated"):
        load_recording(path)


def test_a_damaged_byte_is_refused(tmp_path: Path) -> None:
    path = small.write(tmp_path / "bent.npz", small.arrays())
    data = bytearray(path.read_bytes())
    data[400] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(RecordingError):
        load_recording(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such file"):
        load_recording(tmp_path / "absent.npz")
    with pytest.raises(RecordingError, match="unreadable"):
        load_recording(tmp_path)
    plain = tmp_path / "plain.npz"
    plain.write_text("no archive")
    with pytest.raises(RecordingError, match=r"expected a \.npz recording"):
        load_recording(plain)


def test_an_array_longer_than_its_member_is_refused_unread(tmp_path: Path) -> None:
    """The header promises 2^40 words: refused from the header, with nothing allocated."""
    arrays = small.arrays()
    path = small.write(tmp_path / "promise.npz", {**arrays, "page_data": np.zeros((0, 512), "<u8")})
    honest, lie = b"(0, 512)", b"(9999999999, 512)"
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = members["page_data.npy"]
    assert honest in header
    members["page_data.npy"] = header.replace(honest + b", }" + b" " * (len(lie) - len(honest)), lie + b", }")
    assert lie in members["page_data.npy"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(RecordingError, match="has 0 bytes, expected"):
        load_recording(path)


@pytest.mark.parametrize(("paging", "row"), [("32-bit", 1), ("PAE", 2), ("5-level", 1)])
def test_registers_of_another_mode_than_meta_states_are_refused(paging: str, row: int, tmp_path: Path) -> None:
    path = small.write(tmp_path / "other.npz", small.arrays(paging=paging))
    with pytest.raises((RecordingError, UnsupportedModeError), match=f"row {row}"):
        load_recording(path)


@pytest.mark.parametrize(("row", "value"), [(0, 0x50033), (0, 0x80050032), (1, 0), (2, 0x800)])
def test_registers_that_leave_long_mode_are_named_as_unsupported(row: int, value: int, tmp_path: Path) -> None:
    arrays = small.arrays()
    arrays["addr"][row] = value
    with pytest.raises(UnsupportedModeError, match=f"row {row}"):
        load_recording(small.write(tmp_path / "mode.npz", arrays))
