//! What the guest's CPUID says of paging.

use crate::error::{Error, Result};

/// The processor that a vCPU is: which bits its registers accept and what its entries mean (SDM vol. 3A, 4.1.4).
///
/// The default is what KVM gives a guest on shadow page tables of a recent processor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one CPUID bit")]
pub struct CpuModel {
    /// Physical address width, 36..=52: higher bits are reserved in entries and in CR3 (`CPUID.80000008H:EAX[7:0]`).
    pub maxphyaddr: u8,
    /// 1 GiB pages in 4- and 5-level paging; without them bit 7 of a PDPTE is reserved.
    pub gib_pages: bool,
    /// PSE-36: bits 16:13 of a 4 MiB entry are address bits 35:32; without it bits 21:13 are reserved.
    pub pse36: bool,
    /// Execute-disable: EFER.NXE may be set.
    pub nx: bool,
    /// CR0.WP exists, as from the 486 on. Without it the bit reads as 0, and the supervisor writes to any page.
    pub wp: bool,
    /// CR4.SMEP may be set.
    pub smep: bool,
    /// CR4.SMAP may be set.
    pub smap: bool,
    /// CR4.LA57 may be set: 5-level paging.
    pub la57: bool,
    /// Long mode exists: EFER.LME may be set (`CPUID.80000001H:EDX[29]`).
    pub long_mode: bool,
    /// CR4.PKE may be set: protection keys of user pages. KVM gives them to no guest on shadow page tables, and the default here
    /// is the same; how they work all the same: docs/machine.md, 18.
    pub pku: bool,
}

impl Default for CpuModel {
    fn default() -> Self {
        Self {
            maxphyaddr: 46,
            gib_pages: true,
            pse36: true,
            nx: true,
            wp: true,
            smep: true,
            smap: true,
            la57: true,
            long_mode: true,
            pku: false,
        }
    }
}

impl CpuModel {
    /// Checks that there is such a processor.
    ///
    /// # Errors
    /// [`Error::Config`] for a physical address width outside 36..=52.
    pub fn validate(&self) -> Result<()> {
        if (36..=52).contains(&self.maxphyaddr) {
            return Ok(());
        }
        Err(Error::Config { what: "maxphyaddr", got: self.maxphyaddr.to_string(), expected: "36..=52".into() })
    }
}
