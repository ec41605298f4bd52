//! Which accesses a translation permits (B.5): the guest's rules, and the hardware's over shadow entries.

use crate::{
    access::{Access, AccessFlags, AccessKind, ProtectionKey},
    regs::{CR0_PG, CR0_WP, CR4_SMAP, CR4_SMEP, ControlRegs, EFER_NXE},
    spte::Spte,
};

/// The register bits that decide permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one register bit")]
pub(crate) struct PermissionRules {
    wp: bool,
    nx: bool,
    smep: bool,
    smap: bool,
    keys: bool,
    pkru: u32,
}

impl PermissionRules {
    /// The rules that the guest's registers set for the guest's own tables.
    ///
    /// Without paging nothing is refused, and the hypervisor keeps SMEP and SMAP from the processor (E103).
    pub(crate) const fn guest(regs: &ControlRegs) -> Self {
        if regs.cr0 & CR0_PG == 0 {
            let nx = regs.efer & EFER_NXE != 0;
            return Self { wp: false, nx, smep: false, smap: false, keys: false, pkru: 0 };
        }
        Self {
            wp: regs.cr0 & CR0_WP != 0,
            nx: regs.efer & EFER_NXE != 0,
            smep: regs.cr4 & CR4_SMEP != 0,
            smap: regs.cr4 & CR4_SMAP != 0,
            keys: regs.has_keys(),
            pkru: if regs.has_keys() { regs.pkru } else { 0 },
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

    /// Whether protection keys are in force.
    pub(crate) const fn keys(self) -> bool {
        self.keys
    }

    /// The keys whose pages PKRU denies to an access: data accesses to user pages only (E111, SDM vol. 3A, 4.6.2).
    #[inline]
    pub(crate) const fn denied_keys(self, kind: AccessKind, flags: AccessFlags) -> DeniedKeys {
        // Without keys, and with a PKRU that denies nothing, this is all.
        if self.pkru == 0 || kind.is_fetch() {
            return DeniedKeys(0);
        }
        let writes = if kind.is_write() && (flags.is_user() || self.wp) { self.pkru >> 1 } else { 0 };
        DeniedKeys((self.pkru | writes) & 0x5555_5555)
    }

    /// [`permits`](Self::permits), and the page's key does not deny it.
    #[inline]
    pub(crate) const fn permits_page(
        self,
        access: Access,
        key: ProtectionKey,
        kind: AccessKind,
        flags: AccessFlags,
    ) -> bool {
        self.permits(access, kind, flags) && !self.denied_keys(kind, flags).deny(access, key)
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
        Demand { set, clear }
    }

    /// Whether a translation with these accumulated rights permits the access, its key apart.
    #[inline]
    pub(crate) const fn permits(self, access: Access, kind: AccessKind, flags: AccessFlags) -> bool {
        self.demand(kind, flags).is_met(access)
    }
}

/// What the hardware asks of a leaf before an access goes through it: rights, A, D for a write, and a key that is not denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafDemand {
    /// The bits of [`Spte::told`] that matter.
    mask: u8,
    /// What they must be.
    told: u8,
    denied_keys: DeniedKeys,
}

impl LeafDemand {
    const NONE: Self = Self { mask: 0, told: 0, denied_keys: DeniedKeys(0) };

    const fn new(rules: PermissionRules, kind: AccessKind, flags: AccessFlags) -> Self {
        let Demand { set, clear } = rules.demand(kind, flags);
        let (mask, told) = (Spte::told_rights(set.union(clear)), Spte::told_rights(set));
        let used = Spte::told_use(kind.is_write());
        Self {
            mask: mask | used,
            told: told ^ Spte::told_rights(Access::EXEC) & mask | used,
            denied_keys: rules.denied_keys(kind, flags),
        }
    }

    /// Whether an access may go through the leaf as it is.
    #[inline]
    pub(crate) const fn is_met(self, leaf: Spte) -> bool {
        (leaf.told() ^ self.told) & self.mask == 0 && !self.denied_keys.deny(leaf.access(), leaf.key())
    }

    /// Whether it may once A and D are set.
    #[inline]
    pub(crate) const fn is_permitted(self, leaf: Spte) -> bool {
        let mask = self.mask & !Spte::told_use(true);
        (leaf.told() ^ self.told) & mask == 0 && !self.denied_keys.deny(leaf.access(), leaf.key())
    }
}

/// The demands of every access, made when the registers change: a hit in the TLB then asks for no register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafDemands([LeafDemand; 24]);

impl LeafDemands {
    pub(crate) fn new(rules: PermissionRules) -> Self {
        let mut demands = [LeafDemand::NONE; 24];
        for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
            for flags in (0..8).map(AccessFlags::from_bits_truncate) {
                demands[Self::index(kind, flags)] = LeafDemand::new(rules, kind, flags);
            }
        }
        Self(demands)
    }

    #[inline]
    const fn index(kind: AccessKind, flags: AccessFlags) -> usize {
        kind as usize * 8 + flags.bits() as usize % 8
    }

    /// What this access asks.
    #[inline]
    pub(crate) const fn of(&self, kind: AccessKind, flags: AccessFlags) -> LeafDemand {
        self.0[Self::index(kind, flags)]
    }
}

/// Protection keys whose user pages are denied: bit 2k for key k.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeniedKeys(u32);

impl DeniedKeys {
    /// Bits of an entry one of which is set if its key is denied; where key 0 is, the rights too: pages of the user are not plain then.
    #[inline]
    pub(crate) const fn odd(self) -> u64 {
        match self.0 {
            0 => 0,
            denied if denied & 1 == 0 => 0xf << 59,
            _ => 0xf << 59 | 0b110,
        }
    }

    /// Whether a page with these rights and this key is denied.
    #[inline]
    pub(crate) const fn deny(self, access: Access, key: ProtectionKey) -> bool {
        self.0 != 0 && access.contains(Access::USER) && self.0 >> (2 * key.number() as u32) & 1 != 0
    }
}

/// Rights that must be there, and such that must not: user pages are kept from the supervisor by SMEP and SMAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Demand {
    /// Those that must be there.
    pub set: Access,
    /// Those that must not.
    pub clear: Access,
}

impl Demand {
    /// Whether the rights are as asked.
    #[inline]
    pub(crate) const fn is_met(self, access: Access) -> bool {
        (access.bits() ^ self.set.bits()) & self.set.union(self.clear).bits() == 0
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
            let rules = PermissionRules { wp, nx, smep, smap, keys: false, pkru: 0 };
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

    /// Each key, its two bits among all clear and all set, CR0.WP, 8 rights, 3 kinds, 8 qualifiers against the predicate of B.5.
    #[test]
    fn e111_full_matrix_of_keys_and_pkru_against_the_predicate() {
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];
        for case in 0..16 * 4 * 2 * 2_u32 {
            let (number, bits) = ((case & 15) as u8, case >> 4 & 3);
            let (others, wp) = (if case >> 6 & 1 != 0 { u32::MAX } else { 0 }, case >> 7 & 1 != 0);
            let (key, shift) = (ProtectionKey::new(number), 2 * u32::from(number));
            let pkru = others & !(3 << shift) | bits << shift;
            let rules = PermissionRules { wp, nx: true, smep: false, smap: false, keys: true, pkru };
            for access in (0..8).map(Access::from_bits_truncate) {
                for (kind, flags) in kinds.iter().flat_map(|kind| (0..8).map(move |flags| (*kind, flags))) {
                    let flags = AccessFlags::from_bits_truncate(flags);
                    let writes = kind.is_write() && bits & 2 != 0 && (flags.is_user() || wp);
                    let denied = access.contains(Access::USER) && !kind.is_fetch() && (bits & 1 != 0 || writes);
                    assert_eq!(
                        rules.denied_keys(kind, flags).deny(access, key),
                        denied,
                        "{rules:?} {access:?} {kind:?}"
                    );
                    let permits = rules.permits(access, kind, flags) && !denied;
                    assert_eq!(rules.permits_page(access, key, kind, flags), permits);
                }
            }
        }
    }

    /// Every rule, right, A and D, key of two, kind and qualifier: the demands say what the rules say of rights and key, and want A,
    /// and D for a write.
    #[test]
    fn b5_demands_on_leaves_are_the_rules_and_a_and_d() {
        for bits in 0..64_u32 {
            let [wp, nx, smep, smap, keys, _] = [0, 1, 2, 3, 4, 5].map(|b| bits >> b & 1 != 0);
            let pkru = if !keys {
                0
            } else if bits >> 5 != 0 {
                0b1000
            } else {
                0b0100
            };
            let rules = PermissionRules { wp, nx, smep, smap, keys, pkru };
            let demands = LeafDemands::new(rules);
            let leaves = (0..128_u64).map(|b| {
                let low = 1 | (b & 3) << 1 | (b >> 2 & 3) << 5 | (b >> 6 & 1) << 11;
                Spte::from_raw(low | (b >> 5 & 1) << 59 | (b >> 4 & 1) << 63 | 0x7_7000)
            });
            for leaf in leaves {
                for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
                    for flags in (0..8).map(AccessFlags::from_bits_truncate) {
                        let (demand, case) = (demands.of(kind, flags), (rules, leaf, kind, flags));
                        let permitted = rules.permits_page(leaf.access(), leaf.key(), kind, flags);
                        assert_eq!(demand.is_permitted(leaf), permitted, "{case:?}");
                        let used = leaf.missing_ad(kind.is_write()) == 0;
                        assert_eq!(demand.is_met(leaf), permitted && used, "{case:?}");
                    }
                }
            }
        }
    }
}
