"""KVM's x86 shadow MMU as a library: a multi-threaded Rust core and the Python face of it.

>>> from shadow_mmu import Policy
>>> str(Policy.parse("lru:3"))
'lru:3'

Everything named in ``__all__`` is loaded when it is first used, so that ``import shadow_mmu`` costs nothing: numpy, the
compiled core, the model and the workloads come only when they are wanted.
"""

# typing itself takes longer to import than all the rest of this file; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from shadow_mmu._native import Vcpu, __version__
    from shadow_mmu.config import VmConfig
    from shadow_mmu.cpu import CpuModel
    from shadow_mmu.dumps import MemoryDump, open_dump
    from shadow_mmu.errors import (
        BrokenError,
        ClosedError,
        ConfigError,
        DumpError,
        ForkedError,
        GeneralProtection,
        GuestEvent,
        GuestMemoryError,
        InvalidOpcode,
        MemoryRangeError,
        MissingExtraError,
        PageFault,
        ProgramError,
        RecordingError,
        ShadowMemoryError,
        ShadowMmuError,
        StuckError,
        ThreadError,
        TripleFault,
        UnsupportedModeError,
        VcpuBusyError,
    )
    from shadow_mmu.memory import Memory
    from shadow_mmu.pagewalk import PageWalk
    from shadow_mmu.policy import Policy
    from shadow_mmu.recording import Recording, load_recording
    from shadow_mmu.replay import replay_recording
    from shadow_mmu.report import ReplayReport, ReplayResult
    from shadow_mmu.stats import LockStats, LockUser, LongestUse, RunReport, ShadowPage, Stats
    from shadow_mmu.stressing.plan import StressPlan
    from shadow_mmu.stressing.report import StressReport
    from shadow_mmu.stressing.runner import stress
    from shadow_mmu.translations import Translations
    from shadow_mmu.types import Memslot, MmioExit, OpFlag, OpKind, OutcomeCode, TraceKind
    from shadow_mmu.vm import Vm

__all__ = [
    "BrokenError",
    "ClosedError",
    "ConfigError",
    "CpuModel",
    "DumpError",
    "ForkedError",
    "GeneralProtection",
    "GuestEvent",
    "GuestMemoryError",
    "InvalidOpcode",
    "LockStats",
    "LockUser",
    "LongestUse",
    "Memory",
    "MemoryDump",
    "MemoryRangeError",
    "Memslot",
    "MissingExtraError",
    "MmioExit",
    "OpFlag",
    "OpKind",
    "OutcomeCode",
    "PageFault",
    "PageWalk",
    "Policy",
    "ProgramError",
    "Recording",
    "RecordingError",
    "ReplayReport",
    "ReplayResult",
    "RunReport",
    "ShadowMemoryError",
    "ShadowMmuError",
    "ShadowPage",
    "Stats",
    "StressPlan",
    "StressReport",
    "StuckError",
    "ThreadError",
    "TraceKind",
    "Translations",
    "TripleFault",
    "UnsupportedModeError",
    "Vcpu",
    "VcpuBusyError",
    "Vm",
    "VmConfig",
    "__version__",
    "load_recording",
    "open_dump",
    "replay_recording",
    "stress",
]

_HOMES = {
    "_native": ("Vcpu", "__version__"),
    "config": ("VmConfig",),
    "cpu": ("CpuModel",),
    "dumps": ("MemoryDump", "open_dump"),
    "errors": (
        "BrokenError",
        "ClosedError",
        "ConfigError",
        "DumpError",
        "ForkedError",
        "GeneralProtection",
        "GuestEvent",
        "GuestMemoryError",
        "InvalidOpcode",
        "MemoryRangeError",
        "MissingExtraError",
        "PageFault",
        "ProgramError",
        "RecordingError",
        "ShadowMemoryError",
        "ShadowMmuError",
        "StuckError",
        "ThreadError",
        "TripleFault",
        "UnsupportedModeError",
        "VcpuBusyError",
    ),
    "memory": ("Memory",),
    "pagewalk": ("PageWalk",),
    "policy": ("Policy",),
    "recording": ("Recording", "load_recording"),
    "replay": ("replay_recording",),
    "report": ("ReplayReport", "ReplayResult"),
    "stats": ("LockStats", "LockUser", "LongestUse", "RunReport", "ShadowPage", "Stats"),
    "stressing.plan": ("StressPlan",),
    "stressing.report": ("StressReport",),
    "stressing.runner": ("stress",),
    "translations": ("Translations",),
    "types": ("MmioExit", "Memslot", "OpFlag", "OpKind", "OutcomeCode", "TraceKind"),
    "vm": ("Vm",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  the same

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
