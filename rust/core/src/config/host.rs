//! The hypervisor's own machine.

use super::{CpuModel, choice::choice};

choice! {
    /// What the host is, as far as its page tables matter.
    Host, "host":
    /// 64 bits: shadow tables have up to five levels.
    Bits64 = "64",
    /// 32 bits with PAE, which the 2018 patch names beside 32-bit guests: the shadow has three levels at most, and no guest long mode.
    Pae = "pae",
}

impl Host {
    /// The processor that a vCPU is on this host: one of 32 bits runs no guest in long mode, which takes LA57 away too.
    #[must_use]
    pub const fn processor(self, cpu: CpuModel) -> CpuModel {
        match self {
            Host::Bits64 => cpu,
            Host::Pae => CpuModel { long_mode: false, la57: false, ..cpu },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::{CR4_LA57, CR4_PAE, ControlRegs, EFER_LMA, EFER_LME, EFER_NXE, PagingMode, Writer};

    #[test]
    fn e043_names_round_trip_and_another_is_refused_with_the_choices() {
        for &(name, choice) in Host::ALL {
            assert_eq!((name.parse(), choice.to_string().as_str()), (Ok(choice), name));
        }
        let error = "32".parse::<Host>().map_err(|error| error.to_string());
        assert!(error.is_err_and(|said| said.contains("expected 64, pae")));
    }

    #[test]
    fn e043_a_vcpu_of_a_32_bit_host_starts_under_pae_and_no_write_brings_it_into_long_mode() {
        let cpu = Host::Pae.processor(CpuModel::default());
        let regs = ControlRegs::booted(&cpu);
        assert_eq!((regs.mode(), regs.efer), (PagingMode::Pae, EFER_NXE));
        for writer in [Writer::Guest, Writer::Host] {
            for efer in [EFER_LME, EFER_LMA, EFER_LME | EFER_LMA | EFER_NXE] {
                let mut changed = regs;
                assert!(changed.set_efer(efer, writer, &cpu).is_err(), "{efer:#x} by {writer:?}");
                assert_eq!(changed, regs);
            }
            assert!({ regs }.set_cr4(CR4_PAE | CR4_LA57, writer, &cpu).is_err(), "{writer:?}");
            assert!({ regs }.set_cr4(0, writer, &cpu).is_ok(), "{writer:?}");
        }
        assert_eq!(Host::Bits64.processor(CpuModel::default()), CpuModel::default());
    }
}
