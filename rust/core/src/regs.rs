//! Control registers of a vCPU and the rules of writing them (A.5, docs/machine.md, 4).

use crate::{
    addr::Level,
    error::{Error, Result},
};

/// CR0.PE.
pub const CR0_PE: u64 = 1;
/// CR0.ET, fixed to 1.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.WP.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.NW.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.PGE.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4.LA57.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.SMEP.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP.
pub const CR4_SMAP: u64 = 1 << 21;
/// EFER.LME.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE.
pub const EFER_NXE: u64 = 1 << 11;

/// CR4 bits that this vCPU has: VME to OSXMMEXCPT, UMIP, LA57, FSGSBASE, OSXSAVE, SMEP, SMAP. No PCID, PKU, VMX or CET.
const CR4_ALLOWED: u64 = 0x7ff | 1 << 11 | CR4_LA57 | 1 << 16 | 1 << 18 | CR4_SMEP | CR4_SMAP;
/// EFER bits that this vCPU has: SCE, LME, LMA, NXE.
const EFER_ALLOWED: u64 = 1 | EFER_LME | EFER_LMA | EFER_NXE;
/// CR4 bits whose change re-derives the MMU context (`KVM_MMU_CR4_ROLE_BITS`).
const CR4_ROLE: u64 = CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP;

/// Who sets a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// The guest's instruction, with all its ordering rules.
    Guest,
    /// The host: the register now holds this.
    Host,
}

/// Why a register write did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// #GP(0).
    GeneralProtection,
    /// A paging mode that this machine does not have.
    Unsupported(&'static str),
}

/// What a register write asks of the MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Drop all roots and derive the context anew (`kvm_mmu_reset_context`).
    pub reset_context: bool,
    /// Request `TLB_FLUSH_GUEST`.
    pub flush_guest: bool,
    /// Request `TLB_FLUSH_CURRENT`.
    pub flush_current: bool,
}

/// The registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlRegs {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl Default for ControlRegs {
    /// Long mode with paging on, as a booted 64-bit guest has it.
    fn default() -> Self {
        Self { cr0: 0x8005_0033, cr3: 0, cr4: CR4_PAE, efer: EFER_LMA | EFER_LME | EFER_NXE }
    }
}

/// `Err` for a condition that is #GP.
fn general_protection_if(condition: bool) -> core::result::Result<(), Refused> {
    if condition { Err(Refused::GeneralProtection) } else { Ok(()) }
}

const NO_32BIT: Refused =
    Refused::Unsupported("CR0.PG=1 with EFER.LME=0 selects 32-bit or PAE paging; only 4- and 5-level paging are built");

impl ControlRegs {
    /// Level of the guest's root table, `None` while paging is off.
    pub fn root_level(&self) -> Option<Level> {
        let long = self.cr0 & CR0_PG != 0 && self.efer & EFER_LMA != 0;
        long.then_some(if self.cr4 & CR4_LA57 != 0 { Level::PML5 } else { Level::PML4 })
    }

    /// The root level of a vCPU that is about to touch guest memory.
    ///
    /// # Errors
    /// [`Error::UnsupportedMode`] while paging is off.
    pub fn require_paging(&self) -> Result<Level> {
        self.root_level()
            .ok_or(Error::UnsupportedMode { reason: "CR0.PG=0: an access without paging needs the non-paging context" })
    }

    /// MOV to CR0.
    ///
    /// # Errors
    /// [`Refused`]; the register keeps its value.
    pub fn set_cr0(&mut self, value: u64, writer: Writer) -> core::result::Result<Effects, Refused> {
        general_protection_if(value >> 32 != 0)?;
        general_protection_if(value & CR0_PG != 0 && value & CR0_PE == 0)?;
        general_protection_if(value & CR0_NW != 0 && value & CR0_CD == 0)?;
        let value = value | CR0_ET;
        let (was, now) = (self.cr0 & CR0_PG != 0, value & CR0_PG != 0);
        if now && self.efer & EFER_LME == 0 {
            return Err(NO_32BIT);
        }
        if writer == Writer::Guest {
            general_protection_if(now && !was && self.cr4 & CR4_PAE == 0)?;
            // The guest runs 64-bit code whenever LMA is set, and 64-bit code may not clear PG.
            general_protection_if(was && !now && self.efer & EFER_LMA != 0)?;
        }
        let changed = self.cr0 ^ value;
        self.cr0 = value;
        self.efer = if now { self.efer | EFER_LMA } else { self.efer & !EFER_LMA };
        Ok(Effects { reset_context: changed & (CR0_PG | CR0_WP) != 0, ..Effects::default() })
    }

    /// MOV to CR4.
    ///
    /// # Errors
    /// [`Refused`]; the register keeps its value.
    pub fn set_cr4(&mut self, value: u64, writer: Writer) -> core::result::Result<Effects, Refused> {
        general_protection_if(value & !CR4_ALLOWED != 0)?;
        let changed = self.cr4 ^ value;
        if self.efer & EFER_LMA != 0 {
            general_protection_if(value & CR4_PAE == 0)?;
            general_protection_if(changed & CR4_LA57 != 0 && writer == Writer::Guest)?;
        }
        self.cr4 = value;
        let flush_guest = changed & CR4_PGE != 0;
        let smep_set = changed & value & CR4_SMEP != 0;
        Ok(Effects {
            reset_context: changed & CR4_ROLE != 0,
            flush_guest,
            flush_current: !flush_guest && (changed & CR4_PAE != 0 || smep_set),
        })
    }

    /// WRMSR to EFER.
    ///
    /// # Errors
    /// [`Refused`]; the register keeps its value.
    pub fn set_efer(&mut self, value: u64, writer: Writer) -> core::result::Result<Effects, Refused> {
        general_protection_if(value & !EFER_ALLOWED != 0)?;
        let paging = self.cr0 & CR0_PG != 0;
        let lme_changed = (self.efer ^ value) & EFER_LME != 0;
        match writer {
            Writer::Guest => general_protection_if(paging && lme_changed)?,
            Writer::Host if paging && value & EFER_LME == 0 => return Err(NO_32BIT),
            Writer::Host => {}
        }
        let lma = match writer {
            Writer::Guest => self.efer & EFER_LMA,
            Writer::Host if paging && value & EFER_LME != 0 => EFER_LMA,
            Writer::Host => 0,
        };
        let value = (value & !EFER_LMA) | lma;
        let changed = self.efer ^ value;
        self.efer = value;
        Ok(Effects { reset_context: changed & (EFER_NXE | EFER_LMA) != 0, ..Effects::default() })
    }
}
