"""Every vCPU does everything at once, and an oracle judges each access: :func:`shadow_mmu.stress` (``docs/stress.md``)."""

__all__: list[str] = []
