//! What a machine is made of: memory, vCPUs, root policy.

mod choice;
mod cpu_model;
mod host;
mod lock_kind;
mod memory_region;
mod mmu_kind;
mod pae_root_policy;

use core::{fmt, str::FromStr};

pub use self::{
    cpu_model::CpuModel, host::Host, lock_kind::LockKind, memory_region::MemoryRegion, mmu_kind::MmuKind,
    pae_root_policy::PaeRootPolicy,
};
use crate::{
    addr::PAE_TABLES,
    error::{Error, Result},
    link::LinkPolicy,
};

/// Most vCPUs a machine may have (`KVM_MAX_VCPUS`).
pub const MAX_VCPUS: usize = 1024;
/// Most previous roots (E032).
pub const MAX_PREV_ROOTS: u8 = 16;
const _: () = assert!(PAE_TABLES == MAX_PREV_ROOTS as usize + 1);
/// End of the guest-physical space that memslots may use.
pub const MAX_GPA: u64 = 1 << 46;
/// Entries of the software TLB unless told otherwise: the size of a second-level TLB.
pub const DEFAULT_TLB_ENTRIES: usize = 1536;
/// Most entries of the software TLB.
pub const MAX_TLB_ENTRIES: usize = 1 << 20;

/// What becomes of the current root at a CR3 write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// KVM before the 2018 patch: no cached root, every switch takes the `mmu_lock` three times.
    Locked,
    /// The 2018 patch "kvm: x86: Add fast CR3 switch code path": one previous root, its tag apart (A.1).
    Seed,
    /// The modern kernel with this many previous roots, 0..=16 (A.5 to A.7).
    Lru(u8),
}

impl Policy {
    /// Previous roots that a vCPU keeps.
    pub const fn prev_roots(self) -> usize {
        match self {
            Policy::Locked => 0,
            Policy::Seed => 1,
            Policy::Lru(n) => n as usize,
        }
    }

    /// Whether this is the modern kernel's root cache.
    pub const fn is_lru(self) -> bool {
        matches!(self, Policy::Lru(_))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Locked => f.write_str("locked"),
            Policy::Seed => f.write_str("seed"),
            Policy::Lru(n) => write!(f, "lru:{n}"),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lru = |digits: &str| {
            digits.parse::<u8>().ok().filter(|&n| n <= MAX_PREV_ROOTS && digits.bytes().all(|b| b.is_ascii_digit()))
        };
        match text {
            "locked" => Ok(Policy::Locked),
            "seed" => Ok(Policy::Seed),
            _ => text.strip_prefix("lru:").and_then(lru).map(Policy::Lru).ok_or_else(|| Error::Config {
                what: "policy",
                got: text.into(),
                expected: "locked, seed, or lru:N with N = 0..16".into(),
            }),
        }
    }
}

/// The value whose store panics under [`Mutant::PanicInGuest`] and [`Mutant::PanicUnderLock`].
pub const PANIC_VALUE: u64 = 0xdead_beef_0000_0000;

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One rule of the MMU switched off, to prove that a test notices (cargo feature `mutants`).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub enum Mutant {
            /// Nothing is switched off.
            #[default]
            None,
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// Every mutant with its name.
            pub const ALL: &'static [(&'static str, Mutant)] = &[$(($text, Mutant::$name),)*];
        }
    };
}

mutants! {
    /// A sync clears the flags and changes no entry.
    SkipSync = "skip-sync",
    /// INVLPG leaves the entry in the TLB.
    InvlpgKeepsTlb = "invlpg-keeps-tlb",
    /// The hypervisor's writes drop no shadow entry, as KVM's own do not (C.6); the guest's tables can change unseen.
    HostWriteUntracked = "host-write-untracked",
    /// A linked child is reused whatever its gfn (F-02), and the hypervisor's writes are untracked.
    ChildReuseIgnoresGfn = "child-reuse-ignores-gfn",
    /// A linked child is reused whatever its role (F-03), and the hypervisor's writes are untracked.
    ChildReuseIgnoresRole = "child-reuse-ignores-role",
    /// The walk keeps W although the guest's D is 0.
    WalkKeepsWriteWhenClean = "walk-keeps-write-when-clean",
    /// The sync keeps W although the guest's D is 0.
    SyncKeepsWriteWhenClean = "sync-keeps-write-when-clean",
    /// A trapped write to a table zaps no entry.
    NoZapOnWrite = "no-zap-on-write",
    /// A remote flush reaches nobody.
    NoRemoteFlush = "no-remote-flush",
    /// The 100th SPTE that a fault installs maps the neighbouring frame.
    AlterOneSpte = "alter-one-spte",
    /// A new parent of an unsync page is not marked (F-41).
    LinkDoesNotMark = "link-does-not-mark",
    /// A sync write-protects nothing.
    SyncWithoutProtect = "sync-without-protect",
    /// A sync write-protects, and does not flush before it reads the guest's tables (E140).
    SyncWithoutFlush = "sync-without-flush",
    /// A sync may make a table writable again (E137).
    SyncUnsyncs = "sync-unsyncs",
    /// A child that leads to unsync pages is linked without a sync (F-14).
    LinkWithoutSync = "link-without-sync",
    /// An unsync page marks its parents, and they do not mark theirs (D.1).
    MarkStopsEarly = "mark-stops-early",
    /// A frame that becomes a table stays writable where it was (F-15).
    TableStaysWritable = "table-stays-writable",
    /// The rights of a translation are those of its leaf entry alone (E114).
    LeafRightsOnly = "leaf-rights-only",
    /// INVLPG syncs no entry.
    InvlpgSkipsSync = "invlpg-skips-sync",
    /// INVLPG forgets the last previous root.
    InvlpgMissesOneRoot = "invlpg-misses-one-root",
    /// An injected fault leaves the translation of its address (E070).
    FaultKeepsEntry = "fault-keeps-entry",
    /// A requested TLB flush empties nothing.
    FlushKeepsTlb = "flush-keeps-tlb",
    /// A cached root is a hit whatever its role (E024).
    RootHitIgnoresRole = "root-hit-ignores-role",
    /// The seed records the tag of its previous root on a hit only (E006).
    TagOnlyOnHit = "tag-only-on-hit",
    /// A hit in the root cache leaves the root's flooding count (E020).
    HitKeepsFlooding = "hit-keeps-flooding",
    /// No number of writes to a table zaps its page (E144).
    NoFloodingLimit = "no-flooding-limit",
    /// A zapped root is not announced to the vCPUs that use it (E149).
    ObsoleteUnannounced = "obsolete-unannounced",
    /// A guest store of [`PANIC_VALUE`] panics inside the guest, after the store.
    PanicInGuest = "panic-in-guest",
    /// A hypervisor's write of [`PANIC_VALUE`] panics under the lock, before the shadow entries are dropped.
    PanicUnderLock = "panic-under-lock",
}

impl FromStr for Mutant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "none" {
            return Ok(Mutant::None);
        }
        Mutant::ALL.iter().find(|(name, _)| *name == text).map(|&(_, mutant)| mutant).ok_or_else(|| Error::Config {
            what: "mutant",
            got: text.into(),
            expected: Mutant::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Everything that is fixed when a machine is made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "what to measure and record: independent switches")]
pub struct VmConfig {
    /// Memslots, not overlapping.
    pub slots: Vec<MemoryRegion>,
    /// Number of vCPUs, 1..=1024.
    pub vcpus: usize,
    /// What becomes of the current root at a CR3 write.
    pub policy: Policy,
    /// What the `mmu_lock` is.
    pub lock: LockKind,
    /// How an already-unsync page is brought under another root.
    pub link: LinkPolicy,
    /// Whether the roots of 32-bit and PAE guests are cached.
    pub pae_roots: PaeRootPolicy,
    /// What the hardware walks.
    pub mmu: MmuKind,
    /// Entries of each vCPU's software TLB; 0 = every access walks the shadow tables.
    pub tlb_entries: usize,
    /// What the host is.
    pub host: Host,
    /// What processor each vCPU is, as far as the host lets it be.
    pub cpu: CpuModel,
    /// Record the event stream (docs/machine.md, 11).
    pub trace: bool,
    /// Time each hold of and wait for the `mmu_lock`.
    pub lock_times: bool,
    /// Let [`Vm::lock_users`](crate::Vm::lock_users) tell who waits for and who holds the `mmu_lock`; `lock_times` does so too.
    pub lock_watch: bool,
    /// Time each CR3 write together with the requests and the load that it causes.
    pub cr3_times: bool,
    /// A rule to switch off; needs the cargo feature `mutants`.
    pub mutant: Mutant,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            vcpus: 1,
            policy: Policy::Lru(3),
            lock: LockKind::default(),
            link: LinkPolicy::default(),
            pae_roots: PaeRootPolicy::default(),
            mmu: MmuKind::default(),
            tlb_entries: DEFAULT_TLB_ENTRIES,
            host: Host::default(),
            cpu: CpuModel::default(),
            trace: false,
            lock_times: false,
            lock_watch: false,
            cr3_times: false,
            mutant: Mutant::None,
        }
    }
}

impl VmConfig {
    /// Whether roots of four entries enter the root cache: where they are to, and there is one.
    pub fn caches_pae_roots(&self) -> bool {
        self.pae_roots == PaeRootPolicy::Cached && self.policy != Policy::Locked && !self.mmu.is_tdp()
    }

    /// Checks every value but the slots, which [`GuestMemory`](crate::memory::GuestMemory) checks as it adds them.
    ///
    /// # Errors
    /// [`Error::Config`] naming the parameter, the value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let range = |what: &'static str, got: u64, low: u64, high: u64| {
            if (low..=high).contains(&got) {
                Ok(())
            } else {
                Err(Error::Config { what, got: got.to_string(), expected: format!("{low}..={high}") })
            }
        };
        range("vcpus", self.vcpus as u64, 1, MAX_VCPUS as u64)?;
        range("prev_roots", self.policy.prev_roots() as u64, 0, u64::from(MAX_PREV_ROOTS))?;
        range("tlb_entries", self.tlb_entries as u64, 0, MAX_TLB_ENTRIES as u64)?;
        // All TLBs together: 256 MiB.
        range("tlb_entries of all vcpus", (self.tlb_entries * self.vcpus) as u64, 0, MAX_TLB_ENTRIES as u64 * 16)?;
        self.cpu.validate()?;
        if self.mmu == MmuKind::Tdp && self.host != Host::Bits64 {
            let expected = "64 with mmu=tdp, whose tables have four levels".into();
            return Err(Error::Config { what: "host", got: self.host.to_string(), expected });
        }
        if self.trace {
            // A trace record names its vCPU in one byte, 255 being the host.
            range("vcpus with trace", self.vcpus as u64, 1, 255)?;
        }
        if self.mutant != Mutant::None && !cfg!(feature = "mutants") {
            return Err(Error::Config {
                what: "mutant",
                got: format!("{:?}", self.mutant),
                expected: "none (this build has no mutants)".into(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e032_policy_names_round_trip_and_bad_ones_say_what_is_accepted() {
        for text in ["locked", "seed", "lru:0", "lru:3", "lru:16"] {
            assert_eq!(text.parse::<Policy>().map(|p| p.to_string()).as_deref(), Ok(text));
        }
        for text in ["lru:17", "lru:-1", "lru:", "lru:+3", "lru:x", "", "LOCKED", "lru:999"] {
            assert!(matches!(text.parse::<Policy>(), Err(Error::Config { .. })), "{text}");
        }
    }

    #[test]
    fn e044_direct_tables_of_four_levels_are_no_choice_on_a_host_of_32_bits() {
        let config = VmConfig { mmu: MmuKind::Tdp, host: Host::Pae, ..VmConfig::default() };
        let error = config.validate().map_err(|error| error.to_string());
        assert!(error.is_err_and(|said| said.contains("host: got pae, expected 64 with mmu=tdp")));
        assert_eq!(VmConfig { mmu: MmuKind::Shadow, ..config }.validate(), Ok(()));
    }
}
