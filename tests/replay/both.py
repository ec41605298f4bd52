"""A recording's beginning on core and model: the same states, events and findings."""

import numpy as np

from shadow_mmu import Recording, Vm
from shadow_mmu.model import Machine
from shadow_mmu.recording_program import compile_recording
from shadow_mmu.types import OpKind


def go_through_the_same(recording: Recording, policy: str, operations: int) -> None:
    """Run the first operations on both, and fail unless all state words, trace records and audits agree."""
    program = compile_recording(recording)
    ops, pages = program.ops[:operations], program.pages
    assert len(ops) == operations
    model = Machine([(0, recording.ram_bytes)], recording.vcpus, policy, trace=True)
    words = memoryview(np.ascontiguousarray(pages).tobytes())
    for row in ops.tolist():
        model.execute(row, words if row[0] == OpKind.HOST_PAGE else None)
    rows = pages.reshape(-1).view(np.uint8).data
    with Vm(recording.ram_bytes, vcpus=recording.vcpus, policy=policy, trace=True) as vm:
        for row in ops:
            vm._native.execute(row.tobytes(), rows if row["kind"] == OpKind.HOST_PAGE else None)
        assert vm.state_words().tobytes() == model.state_words()
        assert vm.trace().tobytes() == model.take_trace()
        assert vm.audit() == model.audit() == []
