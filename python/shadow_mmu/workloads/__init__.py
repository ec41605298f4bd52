"""Programs for the machine: KPTI ping-pong, the micro guest of the kernel traces, seeded random streams.

Import what you need from the modules: :mod:`.address_space` builds guest page tables, :mod:`.kpti`, :mod:`.microguest` and
:mod:`.random` make programs from them. All of them are operations (:mod:`shadow_mmu.ops`), for the core and the model alike.
"""
