"""``python -m shadow_mmu`` is ``shadow-mmu``."""

from shadow_mmu.cli import main

if __name__ == "__main__":
    main()
