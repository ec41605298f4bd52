//! Accesses that the hypervisor makes for the guest (C.6).

use super::{Vcpu, access::Action};
use crate::{
    access::AccessKind,
    addr::Gpa,
    mmu::{Shared, Stored, TableWrite},
    op::Outcome,
    regs::CR4_PAE,
};

impl Vcpu {
    /// Loads or stores for the guest. What no memslot has, and writes to what the guest may not write (E107), go to the device
    /// model.
    pub(crate) fn emulate(&mut self, shared: &Shared, gpa: Gpa, kind: AccessKind, action: Action) -> Outcome {
        if shared.memory.slot(gpa.gfn()).is_none_or(|slot| !slot.admits(kind)) {
            self.cx.stats.counters.mmio_exits += 1;
            return Outcome::Mmio(gpa);
        }
        match action {
            Action::Load(size) => Outcome::Ok(shared.memory.load(gpa, size).unwrap_or(u64::MAX)),
            Action::Translate if !kind.is_write() => Outcome::Ok(gpa.get()),
            Action::Translate | Action::Store { .. } => self.emulate_write(shared, gpa, action),
        }
    }

    /// Stores for the guest and tells the MMU. A write access that stores nothing still counts for flooding.
    fn emulate_write(&mut self, shared: &Shared, gpa: Gpa, action: Action) -> Outcome {
        let stored = match action {
            Action::Store { value, size } => {
                shared.memory.store(gpa, value, size);
                Some(Stored { size })
            }
            Action::Translate | Action::Load(_) => None,
        };
        shared.track_write(&mut self.cx, TableWrite { gpa, stored }, self.regs.cr4 & CR4_PAE != 0);
        Outcome::Ok(gpa.get())
    }
}
