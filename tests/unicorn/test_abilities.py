"""What unicorn can judge, by asking it: its CPUID, and its instructions. What it cannot is for the matrices alone."""

import pytest
from tests.unicorn.judge import Judge, Seen
from tests.unicorn.modes import DATA, MAXPHYADDR, PAGINGS, ROOT, Mode

CPUID, WRPKRU, MOV_TO_CR3, MOV_TO_CR4 = b"\x0f\xa2", b"\x0f\x01\xef", b"\x0f\x22\xd8", b"\x0f\x22\xe0"
PCIDE, PKE = 1 << 17, 1 << 22
KEY_1 = 1 << 59
MODE = Mode(PAGINGS["4-level"])


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(PAGINGS["4-level"])


def read(judge: Judge, kind: str = "read") -> Seen:
    return judge.access(MODE, 0, kind, user=False, expected=DATA, as_it_is=True)


def test_it_has_what_the_cases_use(judge: Judge) -> None:
    judge.begin(MODE)
    _, basic = judge.execute(CPUID, eax=1)
    _, structured = judge.execute(CPUID, eax=7)
    _, extended = judge.execute(CPUID, eax=0x8000_0001)
    _, widths = judge.execute(CPUID, eax=0x8000_0008)
    assert basic["edx"] & (1 << 3 | 1 << 6 | 1 << 17) == 1 << 3 | 1 << 6 | 1 << 17, "PSE, PAE, PSE-36"
    assert structured["ebx"] & (1 << 7 | 1 << 20) == 1 << 7 | 1 << 20, "SMEP, SMAP"
    assert structured["ecx"] & 1 << 16, "LA57"
    assert extended["edx"] & (1 << 20 | 1 << 26) == 1 << 20 | 1 << 26, "NX, 1 GiB pages"
    assert widths["eax"] & 0xFFFF == 57 << 8 | MAXPHYADDR


@pytest.mark.parametrize("wp", [False, True])
@pytest.mark.parametrize("rights", range(4))
def test_it_has_protection_keys(judge: Judge, rights: int, *, wp: bool) -> None:
    """SDM 3A 4.6.2: AD denies data accesses, WD writes (a supervisor's with CR0.WP); bit 5 of the error code says so."""
    judge.map_first_page(DATA | 0x67 | KEY_1)
    denied = {"read": bool(rights & 1), "write": bool(rights & 1 or (rights & 2 and wp))}
    for kind, code, at in (("read", 0x21, 1), ("write", 0x23, 15)):
        judge.begin(Mode(PAGINGS["4-level"], wp=wp), PKE)
        assert judge.execute(WRPKRU, eax=rights << 2)[0] == []
        assert read(judge, kind) == (Seen(None, code, at) if denied[kind] else Seen(DATA, None, None))


def test_it_has_no_pcid(judge: Judge) -> None:
    """CPUID denies it; CR4.PCIDE can be set and changes nothing: bit 63 of a CR3 write stays in CR3, and the TLB is emptied."""
    judge.begin(MODE)
    assert not judge.execute(CPUID, eax=1)[1]["ecx"] & 1 << 17
    judge.begin(MODE, PCIDE)
    judge.map_first_page(DATA | 0x67)
    keep = ROOT | 1 | 1 << 63
    judge.execute(MOV_TO_CR3, eax=ROOT | 1)
    assert read(judge) == Seen(DATA, None, None)
    judge.map_first_page(DATA + 0x1000 | 0x67)
    assert judge.execute(MOV_TO_CR3, eax=keep)[1]["cr3"] == keep, "the SDM: bit 63 is not stored"
    assert read(judge) == Seen(DATA + 0x1000, None, None), "the SDM: the translations of the PCID stay"


def test_it_does_not_check_writes_to_cr4(judge: Judge) -> None:
    """Bit 15 is reserved: the SDM has #GP. The rules of register writes are judged by ``tests/behaviour`` alone."""
    judge.begin(MODE)
    interrupts, after = judge.execute(MOV_TO_CR4, eax=MODE.cr4 | 1 << 15)
    assert (interrupts, after["cr4"]) == ([], MODE.cr4 | 1 << 15)
