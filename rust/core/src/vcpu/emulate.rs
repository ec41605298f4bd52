//! Emulated writes to write-protected guest tables (C.6).

use super::{Vcpu, access::Action};
use crate::{
    addr::Gpa,
    mmu::{Shared, Stored, TableWrite},
    op::Outcome,
    regs::CR4_PAE,
};

impl Vcpu {
    /// Stores for the guest and tells the MMU. A write access that stores nothing still counts for flooding.
    pub(crate) fn emulate_write(&mut self, shared: &Shared, gpa: Gpa, action: Action) -> Outcome {
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
