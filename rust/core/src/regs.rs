//! Control registers of a vCPU and the rules of writing them (A.5, docs/machine.md, 4).

use crate::{addr::Gva, config::CpuModel};

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
/// CR4.PKE.
pub const CR4_PKE: u64 = 1 << 22;
/// EFER.LME.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE.
pub const EFER_NXE: u64 = 1 << 11;

/// CR4 bits that every vCPU has: VME to OSXMMEXCPT, UMIP, FSGSBASE, OSXSAVE. PCID, VMX and CET none has.
const CR4_COMMON: u64 = 0x7ff | 1 << 11 | 1 << 16 | 1 << 18;
/// EFER bits that every vCPU has: SCE.
const EFER_COMMON: u64 = 1;
/// CR4 bits whose change re-derives the MMU context (`KVM_MMU_CR4_ROLE_BITS`).
const CR4_ROLE: u64 = CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE;

/// Who sets a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// The guest's instruction, with all its ordering rules.
    Guest,
    /// The host: the register now holds this.
    Host,
}

/// #GP(0): the register write does not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// Why PKRU is not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PkruRefused {
    /// #UD: CR4.PKE is clear, the instruction does not exist.
    InvalidOpcode,
    /// #GP(0): bits 63:32 are set (EDX must be 0), or the host sets PKRU of a processor that has none.
    GeneralProtection,
}

/// How guest tables are walked (B.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PagingMode {
    /// CR0.PG=0: linear addresses are physical ones.
    None,
    /// Two levels of 4-byte entries.
    Bits32,
    /// Four cached PDPTRs and two levels of 8-byte entries.
    Pae,
    /// Four levels.
    Long4,
    /// Five levels.
    Long5,
}

impl PagingMode {
    /// Levels of tables, the PDPTRs counted.
    pub const fn levels(self) -> u8 {
        match self {
            PagingMode::None => 0,
            PagingMode::Bits32 => 2,
            PagingMode::Pae => 3,
            PagingMode::Long4 => 4,
            PagingMode::Long5 => 5,
        }
    }

    /// Whether this is 4- or 5-level paging, whose root is a shadow page.
    pub const fn is_long(self) -> bool {
        matches!(self, PagingMode::Long4 | PagingMode::Long5)
    }

    /// The address as an instruction of this mode forms it: outside long mode the low 32 bits.
    #[inline]
    #[must_use]
    pub const fn linear(self, gva: Gva) -> Gva {
        if self.is_long() { gva } else { gva.truncated() }
    }

    /// Width of linear addresses.
    pub const fn address_bits(self) -> u32 {
        match self {
            PagingMode::Long5 => 57,
            PagingMode::Long4 => 48,
            _ => 32,
        }
    }
}

/// What a register write asks of the MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that is asked for")]
pub struct Effects {
    /// Drop all roots and derive the context anew (`kvm_mmu_reset_context`).
    pub reset_context: bool,
    /// PAE paging is on now, and this write loads the PDPTRs (B.3).
    pub load_pdptrs: bool,
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
    /// PKRU: two bits for each protection key, access-disable and write-disable.
    pub pkru: u32,
}

/// The CR4 bits that this processor has; another is #GP.
const fn cr4_bits(cpu: &CpuModel) -> u64 {
    let mut bits = CR4_COMMON;
    bits |= if cpu.la57 && cpu.long_mode { CR4_LA57 } else { 0 };
    bits |= if cpu.smep { CR4_SMEP } else { 0 };
    bits |= if cpu.smap { CR4_SMAP } else { 0 };
    bits | if cpu.pku { CR4_PKE } else { 0 }
}

/// The EFER bits that this processor has; another is #GP.
const fn efer_bits(cpu: &CpuModel) -> u64 {
    let long = if cpu.long_mode { EFER_LME | EFER_LMA } else { 0 };
    EFER_COMMON | long | if cpu.nx { EFER_NXE } else { 0 }
}

impl Default for ControlRegs {
    /// As a booted 64-bit guest of the default processor has them.
    fn default() -> Self {
        Self::booted(&CpuModel::default())
    }
}

/// `Err` for a condition that is #GP.
fn general_protection_if(condition: bool) -> Result<(), GeneralProtection> {
    if condition { Err(GeneralProtection) } else { Ok(()) }
}

impl ControlRegs {
    /// Long mode with paging on, as a booted 64-bit guest of this processor has it; PAE paging where there is no long mode.
    pub const fn booted(cpu: &CpuModel) -> Self {
        Self {
            cr0: 0x8004_0033 | if cpu.wp { CR0_WP } else { 0 },
            cr3: 0,
            cr4: CR4_PAE,
            efer: if cpu.long_mode { EFER_LMA | EFER_LME } else { 0 } | if cpu.nx { EFER_NXE } else { 0 },
            pkru: 0,
        }
    }

    /// The paging mode that these values select.
    pub const fn mode(&self) -> PagingMode {
        if self.cr0 & CR0_PG == 0 {
            PagingMode::None
        } else if self.efer & EFER_LMA == 0 {
            if self.cr4 & CR4_PAE == 0 { PagingMode::Bits32 } else { PagingMode::Pae }
        } else if self.cr4 & CR4_LA57 == 0 {
            PagingMode::Long4
        } else {
            PagingMode::Long5
        }
    }

    /// Whether long mode is active: 4- or 5-level paging. The processor keeps LMA in step with PG, LME and PAE.
    #[inline]
    pub const fn is_long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// MOV to CR0. A processor without WP ignores that bit, as the 386 does; what it cannot have else is #GP.
    ///
    /// # Errors
    /// [`GeneralProtection`]; the register keeps its value.
    pub fn set_cr0(&mut self, value: u64, writer: Writer, cpu: &CpuModel) -> Result<Effects, GeneralProtection> {
        general_protection_if(value >> 32 != 0)?;
        general_protection_if(value & CR0_PG != 0 && value & CR0_PE == 0)?;
        general_protection_if(value & CR0_NW != 0 && value & CR0_CD == 0)?;
        let (was, now) = (self.cr0 & CR0_PG != 0, value & CR0_PG != 0);
        if writer == Writer::Guest {
            general_protection_if(now && !was && self.efer & EFER_LME != 0 && self.cr4 & CR4_PAE == 0)?;
            // The guest runs 64-bit code whenever LMA is set, and 64-bit code may not clear PG.
            general_protection_if(was && !now && self.efer & EFER_LMA != 0)?;
        }
        let old = *self;
        self.cr0 = (if cpu.wp { value } else { value & !CR0_WP }) | CR0_ET;
        self.update_lma();
        let changed = old.cr0 ^ self.cr0;
        Ok(Effects {
            reset_context: changed & (CR0_PG | CR0_WP) != 0 || self.mode() != old.mode(),
            load_pdptrs: self.mode() == PagingMode::Pae && changed & (CR0_PG | CR0_CD | CR0_NW) != 0,
            flush_guest: was && !now,
            flush_current: false,
        })
    }

    /// MOV to CR4.
    ///
    /// # Errors
    /// [`GeneralProtection`]; the register keeps its value.
    pub fn set_cr4(&mut self, value: u64, writer: Writer, cpu: &CpuModel) -> Result<Effects, GeneralProtection> {
        general_protection_if(value & !cr4_bits(cpu) != 0)?;
        let changed = self.cr4 ^ value;
        if writer == Writer::Guest && self.efer & EFER_LMA != 0 {
            general_protection_if(value & CR4_PAE == 0 || changed & CR4_LA57 != 0)?;
        }
        self.cr4 = value;
        if writer == Writer::Host {
            self.update_lma();
        }
        let flush_guest = changed & CR4_PGE != 0;
        let smep_set = changed & value & CR4_SMEP != 0;
        Ok(Effects {
            reset_context: changed & CR4_ROLE != 0,
            load_pdptrs: self.mode() == PagingMode::Pae && changed & (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP) != 0,
            flush_guest,
            flush_current: !flush_guest && (changed & CR4_PAE != 0 || smep_set),
        })
    }

    /// WRMSR to EFER.
    ///
    /// # Errors
    /// [`GeneralProtection`]; the register keeps its value.
    pub fn set_efer(&mut self, value: u64, writer: Writer, cpu: &CpuModel) -> Result<Effects, GeneralProtection> {
        general_protection_if(value & !efer_bits(cpu) != 0)?;
        let lme_changed = (self.efer ^ value) & EFER_LME != 0;
        general_protection_if(writer == Writer::Guest && self.cr0 & CR0_PG != 0 && lme_changed)?;
        let old = *self;
        self.efer = (value & !EFER_LMA) | (old.efer & EFER_LMA);
        if writer == Writer::Host {
            self.update_lma();
        }
        Ok(Effects {
            reset_context: (old.efer ^ self.efer) & (EFER_NXE | EFER_LMA) != 0,
            load_pdptrs: self.mode() == PagingMode::Pae && old.mode() != PagingMode::Pae,
            ..Effects::default()
        })
    }

    /// WRPKRU. It leaves for no hypervisor, and takes effect at once.
    ///
    /// # Errors
    /// [`PkruRefused`]; the register keeps its value.
    pub const fn set_pkru(&mut self, value: u64, writer: Writer, cpu: &CpuModel) -> Result<(), PkruRefused> {
        if matches!(writer, Writer::Guest) && self.cr4 & CR4_PKE == 0 {
            return Err(PkruRefused::InvalidOpcode);
        }
        if !cpu.pku || value >> 32 != 0 {
            return Err(PkruRefused::GeneralProtection);
        }
        self.pkru = value as u32;
        Ok(())
    }

    /// Whether protection keys are in force: CR4.PKE in long mode.
    #[inline]
    pub const fn has_keys(&self) -> bool {
        self.cr4 & CR4_PKE != 0 && self.is_long_mode()
    }

    /// Whether CR3 may hold the value: in long mode no bit at or above MAXPHYADDR is set (B.3).
    #[inline]
    pub const fn cr3_is_legal(&self, value: u64, maxphyaddr: u8) -> bool {
        !self.is_long_mode() || value >> maxphyaddr == 0
    }

    /// Sets or clears EFER.LMA as the processor does: long mode is active under LME with paging and PAE on.
    fn update_lma(&mut self) {
        let active = self.cr0 & CR0_PG != 0 && self.efer & EFER_LME != 0 && self.cr4 & CR4_PAE != 0;
        self.efer = if active { self.efer | EFER_LMA } else { self.efer & !EFER_LMA };
    }
}
