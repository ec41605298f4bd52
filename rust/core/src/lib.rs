//! KVM's x86 shadow MMU as a library.
//!
//! A guest that runs on shadow page tables never has its own tables walked by the hardware: the hypervisor
//! builds *shadow pages* from them, and must notice every change. This crate is that machinery: guest memory,
//! the guest page walk, shadow pages with roles, parent links and reverse maps, unsync pages and their sync,
//! the `mmu_lock`, the root cache with its lock-free CR3 switch, and a software TLB per vCPU that stands for
//! the hardware's.
//!
//! The exact behaviour is written down in `docs/machine.md`; ids such as `E001` or `C.5` in the comments are
//! those of the semantics it restates (KVM v6.19).
//!
//! ```
//! use shadow_mmu::{AccessFlags, AccessKind, Gpa, Gva, MemoryRegion, Outcome, Policy, Vm, VmConfig};
//!
//! let config = VmConfig { slots: vec![MemoryRegion::ram(Gpa::new(0), 2 << 20)], vcpus: 1, policy: Policy::Lru(3), ..VmConfig::default() };
//! let vm = Vm::new(config)?;
//! // PML4 at 0x1000 -> PDPT 0x2000 -> PD 0x3000 -> PT 0x4000 -> page 0x5000, each present, writable, user.
//! for table in 1..5_u64 {
//!     vm.host_write(Gpa::new(table << 12), &(((table + 1) << 12) | 7).to_le_bytes())?;
//! }
//! let mut cpu = vm.cpu(0)?;
//! cpu.write_cr3(0x1000)?;
//! let gpa = cpu.access(Gva::new(0x123), AccessKind::Read, AccessFlags::USER)?;
//! assert_eq!(gpa, Outcome::Ok(0x5123));
//! # Ok::<(), shadow_mmu::Error>(())
//! ```
//!
//! # Layers
//!
//! A module uses its own layer and lower ones: L0 `access addr config error link op regs stats`; L1 `paging role spte trace`;
//! L2 `memory requests shadow`; L3 `mmu`; L4 `vcpu`; L5 `explain replay run state stress team vm` (docs/architecture.md, 3).
#![forbid(unsafe_code)]

pub(crate) use shadow_mmu_sync as sync;

#[cfg_attr(
    any(loom, explored),
    allow(dead_code, reason = "the models use the protocols, not all of what is built on them")
)]
pub(crate) mod requests;
#[cfg_attr(
    any(loom, explored),
    allow(dead_code, unused_imports, reason = "the models use the protocols, not all of what is built on them")
)]
pub(crate) mod shadow;

pub mod link;

#[cfg(all(test, any(loom, explored)))]
mod models;
#[cfg(all(test, not(any(loom, explored))))]
mod planted;

// Under a model checker only the protocol objects of `shadow` and `requests` are built.
#[cfg(not(any(loom, explored)))]
pub mod access;
#[cfg(not(any(loom, explored)))]
pub mod addr;
#[cfg(not(any(loom, explored)))]
pub mod config;
#[cfg(not(any(loom, explored)))]
pub mod error;
#[cfg(not(any(loom, explored)))]
pub mod explain;
#[cfg(not(any(loom, explored)))]
pub(crate) mod health;
#[cfg(not(any(loom, explored)))]
pub mod memory;
#[cfg(not(any(loom, explored)))]
pub(crate) mod mmu;
#[cfg(not(any(loom, explored)))]
pub mod op;
#[cfg(not(any(loom, explored)))]
pub(crate) mod paging;
#[cfg(not(any(loom, explored)))]
pub mod regs;
#[cfg(not(any(loom, explored)))]
pub mod replay;
#[cfg(not(any(loom, explored)))]
pub mod role;
#[cfg(not(any(loom, explored)))]
pub mod run;
#[cfg(not(any(loom, explored)))]
pub(crate) mod spte;
#[cfg(not(any(loom, explored)))]
pub mod state;
#[cfg(not(any(loom, explored)))]
pub mod stats;
#[cfg(not(any(loom, explored)))]
pub mod stress;
#[cfg(not(any(loom, explored)))]
pub(crate) mod team;
#[cfg(not(any(loom, explored)))]
pub mod trace;
#[cfg(not(any(loom, explored)))]
pub mod vcpu;
#[cfg(not(any(loom, explored)))]
pub mod vm;

#[cfg(not(any(loom, explored)))]
pub use self::{
    access::{Access, AccessFlags, AccessKind, FaultCode, TranslateError, Translation},
    addr::{Gfn, Gpa, Gva, Hpa, Level, Pfn, SpId, SpteRef},
    config::{CpuModel, Host, LockKind, MemoryRegion, MmuKind, Mutant, PaeRootPolicy, Policy, VmConfig},
    error::Error,
    explain::{ShadowPath, ShadowStep},
    link::LinkPolicy,
    mmu::Violation,
    op::{Op, OpKind, Outcome},
    replay::{ReplayMode, ReplayOptions, ReplayReport, replay},
    run::{Control, RunOptions, RunReport, run},
    stats::{Counters, LockReason, LockUser, Stats},
    vm::{Cpu, Translator, Vm},
};
