//! The shadow MMU proper: what is done with the `mmu_lock` held.
//!
//! [`Shared`] is what all vCPUs see. [`MmuLocked`] is the proof of holding the lock: everything that needs it is
//! a method of that value, so nothing can be called without it (KVM: `lockdep_assert_held_write`).

mod audit;
mod child;
mod fault;
mod invalidate;
mod lock;
mod requests;
mod roots;
mod set_spte;
mod sync;
mod unsync;
mod view;
mod watch;
mod writes;
mod zap;

pub use self::audit::Violation;
pub(crate) use self::{
    audit::{RootView, VcpuView},
    lock::MmuLocked,
    requests::Requests,
    view::MmuView,
};
pub(crate) use self::{
    fault::{FaultOutcome, GuestFault},
    writes::{Stored, TableWrite},
};

use crate::{
    addr::{Gfn, Level, SpteRef},
    config::{MmuKind, Mutant, VmConfig},
    error::Result,
    health::Health,
    memory::GuestMemory,
    paging::{LeafDemands, PermissionRules, ReservedBits, WalkContext},
    regs::{CR4_PSE, ControlRegs, EFER_NXE, PagingMode},
    requests::{GuestMode, kick_and_wait},
    role::{PageRole, RoleInputs},
    shadow::{
        arena::ShadowArena,
        publish::{self, TrackHint},
        rmap::Rmaps,
        store::PageStore,
    },
    spte::Spte,
    stats::VcpuStats,
    trace::TraceRecord,
};

/// What all vCPUs of a machine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: VmConfig,
    pub(crate) memory: GuestMemory,
    pub(crate) arena: ShadowArena,
    pub(crate) modes: Box<[GuestMode]>,
    pub(crate) health: Health,
    /// Valid indirect shadow pages; an emulated write reads it without the lock (D.3, F-16).
    pub(crate) indirect_shadow_pages: TrackHint,
    state: lock::MmuLock,
    /// Where waits and holds are timed or watched.
    watch: Option<watch::LockWatch>,
}

/// What the `mmu_lock` protects.
#[derive(Debug, Default)]
pub(crate) struct MmuState {
    pub(crate) pages: PageStore,
    pub(crate) rmaps: Rmaps,
    pub(crate) trace: Option<Vec<TraceRecord>>,
    /// SPTEs that faults have installed, for the mutant that alters one.
    pub(crate) installed: u64,
}

/// The part of a vCPU that MMU code works with while it holds the lock. The host has one of its own.
#[derive(Debug)]
pub(crate) struct MmuCx {
    /// Index of the vCPU; `None` for the host's own operations.
    pub(crate) vcpu: Option<usize>,
    /// The paging context; `None` for the host.
    pub(crate) paging: Option<PagingContext>,
    /// Requests that this vCPU made to itself. Other vCPUs' requests arrive in its [`GuestMode`].
    pub(crate) requests: Requests,
    /// Set whenever the lock is taken; cleared by who wants to know (lock-free CR3 writes).
    pub(crate) took_lock: bool,
    pub(crate) stats: VcpuStats,
}

/// What a vCPU's registers make of paging (A.8). Derived anew when they change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PagingContext {
    /// The guest's paging mode.
    pub(crate) mode: PagingMode,
    /// Role that a root has now.
    pub(crate) role: PageRole,
    /// Reserved bits of guest entries.
    pub(crate) reserved: ReservedBits,
    /// Permission rules of guest entries.
    pub(crate) rules: PermissionRules,
    /// What the hardware asks of a leaf: of the shadow's, or in two dimensions of what the TLB keeps.
    pub(crate) demands: LeafDemands,
    /// Width of linear addresses: 32, 48 or 57.
    pub(crate) va_bits: u32,
    /// Highest level whose guest entries map pages if bit 7 is set.
    pub(crate) largest: Level,
    /// Whether bits 62:59 of a guest leaf are its protection key, whatever CR4.PKE is now.
    pub(crate) keyed: bool,
}

impl PagingContext {
    /// The context for these registers of this machine's processors.
    pub(crate) fn derive(regs: &ControlRegs, config: &VmConfig) -> Self {
        let cpu = &config.cpu;
        let mode = regs.mode();
        let rules = PermissionRules::guest(regs);
        let (nx, pse) = (regs.efer & EFER_NXE != 0, regs.cr4 & CR4_PSE != 0);
        let (reserved, largest) = match mode {
            PagingMode::None => (ReservedBits::bits32(false, false), Level::PT),
            PagingMode::Bits32 => (ReservedBits::bits32(pse, cpu.pse36), if pse { Level::PD } else { Level::PT }),
            PagingMode::Pae => (ReservedBits::pae(cpu.maxphyaddr, nx), Level::PD),
            PagingMode::Long4 | PagingMode::Long5 => {
                (ReservedBits::long_mode(cpu.maxphyaddr, nx, cpu.gib_pages), Level::PDPT)
            }
        };
        Self {
            mode,
            role: match config.mmu {
                MmuKind::Tdp => PageRole::tdp(),
                MmuKind::Shadow => PageRole::root(RoleInputs {
                    mode,
                    pse,
                    wp: rules.write_protects_supervisor(),
                    smep: rules.smep(),
                    smap: rules.smap(),
                    keys: rules.keys(),
                }),
            },
            reserved,
            rules,
            demands: LeafDemands::new(match config.mmu {
                MmuKind::Tdp => rules,
                MmuKind::Shadow => rules.shadow(),
            }),
            va_bits: mode.address_bits(),
            largest,
            keyed: cpu.pku && mode.is_long(),
        }
    }
}

impl MmuCx {
    pub(crate) fn new(vcpu: Option<usize>, config: &VmConfig) -> Self {
        Self {
            vcpu,
            paging: None,
            requests: Requests::empty(),
            took_lock: false,
            stats: VcpuStats::new(config.lock_times, config.cr3_times),
        }
    }

    /// The number that trace records carry.
    pub(crate) fn trace_id(&self) -> u8 {
        self.vcpu.map_or(255, |index| index as u8)
    }
}

impl Shared {
    pub(crate) fn new(config: VmConfig) -> Result<Self> {
        config.validate()?;
        let config = VmConfig { cpu: config.host.processor(config.cpu), ..config };
        let memory = GuestMemory::new(&config.slots, config.cpu.maxphyaddr)?;
        let mut state = MmuState { trace: config.trace.then(Vec::new), ..MmuState::default() };
        for slot in memory.iter() {
            state.rmaps.add_slot(slot.base(), slot.pages())?;
        }
        Ok(Self {
            memory,
            arena: ShadowArena::default(),
            modes: (0..config.vcpus).map(|_| GuestMode::default()).collect(),
            health: Health::default(),
            indirect_shadow_pages: TrackHint::default(),
            state: lock::MmuLock::new(config.lock, state),
            watch: (config.lock_times || config.lock_watch).then(|| watch::LockWatch::new(config.vcpus)),
            config,
        })
    }

    /// Whether this rule is switched off; constant false in builds without mutants. [`Mutant::None`] is never off: where a caller
    /// has no rule to name, it names that.
    #[inline]
    pub(crate) fn mutated(&self, mutant: Mutant) -> bool {
        cfg!(feature = "mutants") && mutant != Mutant::None && self.config.mutant == mutant
    }

    /// What decides a walk of the guest's tables in this context.
    #[inline]
    pub(crate) fn walk_context<'a>(&self, paging: &'a PagingContext) -> WalkContext<'a> {
        WalkContext {
            mode: paging.mode,
            largest: paging.largest,
            reserved: &paging.reserved,
            rules: paging.rules,
            keyed: paging.keyed,
            keep_write_when_clean: self.mutated(Mutant::WalkKeepsWriteWhenClean),
            leaf_rights_only: self.mutated(Mutant::LeafRightsOnly),
        }
    }

    /// The entry, loaded as any lock-free reader loads it.
    #[inline]
    pub(crate) fn spte(&self, at: SpteRef) -> Spte {
        Spte::from_raw(publish::walk_load(&self.arena.sptes(at.sp)[at.at()]))
    }

    /// Whether the frame is in a memslot.
    #[inline]
    pub(crate) fn is_visible(&self, gfn: Gfn) -> bool {
        self.memory.slot(gfn).is_some()
    }

    /// Asks every vCPU for a request, the caller's own included.
    pub(crate) fn request_all(&self, requests: Requests) {
        for mode in &self.modes {
            mode.request(requests.bits());
        }
    }

    /// Makes every vCPU flush its TLB before its next access, and waits for the accesses that are under way.
    ///
    /// KVM: `kvm_flush_remote_tlbs`. A vCPU outside guest mode is not waited for (E075).
    pub(crate) fn flush_remote(&self, cx: &mut MmuCx) {
        cx.stats.counters.remote_tlb_flush_requests += 1;
        if self.mutated(Mutant::NoRemoteFlush) {
            return;
        }
        let waited = kick_and_wait(self.modes.iter(), cx.vcpu, Requests::TLB_FLUSH.bits());
        cx.stats.counters.remote_tlb_flush += u64::from(waited != 0);
    }
}
