//! Which accesses a translation permits (B.5): the guest's rules, and the hardware's over shadow entries.

use crate::{
    access::{Access, AccessFlags, AccessKind},
    regs::{CR0_PG, CR0_WP, CR4_SMAP, CR4_SMEP, ControlRegs, EFER_NXE},
};

/// The register bits that decide permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one register bit")]
pub(crate) struct PermissionRules {
    wp: bool,
    nx: bool,
    smep: bool,
    smap: bool,
}

impl PermissionRules {
    /// The rules that the guest's registers set for the guest's own tables.
    ///
    /// Without paging nothing is refused, and the hypervisor keeps SMEP and SMAP from the processor (E103).
    pub(crate) const fn guest(regs: &ControlRegs) -> Self {
        if regs.cr0 & CR0_PG == 0 {
            return Self { wp: false, nx: regs.efer & EFER_NXE != 0, smep: false, smap: false };
        }
        Self {
            wp: regs.cr0 & CR0_WP != 0,
            nx: regs.efer & EFER_NXE != 0,
            smep: regs.cr4 & CR4_SMEP != 0,
            smap: regs.cr4 & CR4_SMAP != 0,
        }
    }

    /// The rules under which the hardware walks shadow tables for that guest: WP and NX are always on there.
    #[must_use]
    pub(crate) const fn shadow(self) -> Self {
        Self { wp: true, nx: true, ..self }
    }

    /// Whether fetches are told apart in error codes (EFER.NX or CR4.SMEP).
    pub(crate) const fn reports_fetch(self) -> bool {
        self.nx || self.smep
    }

    /// Whether CR0.WP is set.
    pub(crate) const fn write_protects_supervisor(self) -> bool {
        self.wp
    }

    /// Whether CR4.SMEP is in force.
    pub(crate) const fn smep(self) -> bool {
        self.smep
    }

    /// Whether CR4.SMAP is in force.
    pub(crate) const fn smap(self) -> bool {
        self.smap
    }

    /// What an access asks of the rights of its translation.
    #[inline]
    pub(crate) const fn demand(self, kind: AccessKind, flags: AccessFlags) -> Demand {
        let user = flags.is_user();
        let (mut set, mut clear) = (Access::empty(), Access::empty());
        if user {
            set = Access::USER;
        }
        match kind {
            AccessKind::Fetch => {
                if self.nx {
                    set = set.union(Access::EXEC);
                }
                if !user && self.smep {
                    clear = Access::USER;
                }
            }
            AccessKind::Read | AccessKind::Write => {
                if matches!(kind, AccessKind::Write) && (user || self.wp) {
                    set = set.union(Access::WRITE);
                }
                let overridden = flags.contains(AccessFlags::AC) && !flags.contains(AccessFlags::IMPLICIT);
                if !user && self.smap && !overridden {
                    clear = Access::USER;
                }
            }
        }
        Demand { set: set.bits(), clear: clear.bits() }
    }

    /// Whether a translation with these accumulated rights permits the access.
    #[inline]
    pub(crate) const fn permits(self, access: Access, kind: AccessKind, flags: AccessFlags) -> bool {
        self.demand(kind, flags).is_met(access)
    }
}

/// Rights that must be there, and such that must not: user pages are kept from the supervisor by SMEP and SMAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Demand {
    set: u8,
    clear: u8,
}

impl Demand {
    /// Whether the rights are as asked.
    #[inline]
    pub(crate) const fn is_met(self, access: Access) -> bool {
        (access.bits() ^ self.set) & (self.set | self.clear) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 16 register settings x 8 rights x 3 kinds x 8 qualifiers against the predicate of B.5, told as faults.
    #[test]
    fn e110_full_matrix_of_wp_nx_smep_smap_against_the_predicate() {
        let mut cases = 0;
        for bits in 0..16_u32 {
            let [wp, nx, smep, smap] = [0, 1, 2, 3].map(|b| bits >> b & 1 != 0);
            let rules = PermissionRules { wp, nx, smep, smap };
            for access in (0..8).map(Access::from_bits_truncate) {
                let [x, w, u] = [Access::EXEC, Access::WRITE, Access::USER].map(|a| access.contains(a));
                for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
                    for flags in (0..8).map(AccessFlags::from_bits_truncate) {
                        let [user, ac, implicit] =
                            [AccessFlags::USER, AccessFlags::AC, AccessFlags::IMPLICIT].map(|f| flags.contains(f));
                        let mut fault = kind.is_write() && !w && (user || wp);
                        fault |= user && !u;
                        fault |= kind.is_fetch() && !x && nx;
                        fault |= kind.is_fetch() && smep && u && !user;
                        fault |= !kind.is_fetch() && smap && u && !user && (!ac || implicit);
                        assert_eq!(
                            rules.permits(access, kind, flags),
                            !fault,
                            "{rules:?} {access:?} {kind:?} {flags:?}"
                        );
                        cases += 1;
                    }
                }
            }
        }
        assert_eq!(cases, 16 * 8 * 3 * 8);
    }
}
