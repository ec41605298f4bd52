//! KPTI ping-pong: one vCPU switches between a kernel and a user CR3 under each policy.
//!
//! Run with `cargo run --release --example kpti`.

use std::{io::Write, time::Instant};

use shadow_mmu::{
    AccessFlags, AccessKind, Error, Gpa, Gva, LockReason, MemoryRegion, Op, OpKind, Policy, RunOptions, Vm, VmConfig,
};

const SWITCHES: u32 = 1_000_000;

/// Maps gva 0 to a page of its own under a 4-level table whose PML4 is at `root`.
fn build(vm: &Vm, root: u64) -> Result<(), Error> {
    for level in 0..4 {
        let entry = (root + (level + 1) * 0x1000) | 0x67;
        vm.host_write(Gpa::new(root + level * 0x1000), &entry.to_le_bytes())?;
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let (kernel, user) = (0x10_0000, 0x10_8000);
    let mut out = std::io::stdout().lock();
    for policy in [Policy::Locked, Policy::Seed, Policy::Lru(3)] {
        let vm =
            Vm::new(VmConfig { slots: vec![MemoryRegion::ram(Gpa::new(0), 4 << 20)], policy, ..VmConfig::default() })?;
        build(&vm, kernel)?;
        build(&vm, user)?;
        for cr3 in [kernel, user, kernel, user] {
            let mut cpu = vm.cpu(0)?;
            let _ = cpu.write_cr3(cr3)?;
            let _ = cpu.access(Gva::new(0), AccessKind::Fetch, AccessFlags::empty())?;
        }
        // The write, then a guest entry: there the locked policy loads the root that it has freed.
        let switch =
            |n| [Op::new(OpKind::WriteCr3, if n % 2 == 0 { kernel } else { user }), Op::new(OpKind::SyncTlb, 0)];
        let program: Vec<Op> = (0..SWITCHES).flat_map(switch).collect();
        let before = vm.stats()?.total.lock.total();
        let began = Instant::now();
        let report = shadow_mmu::run(&vm, &[&program], &[], RunOptions::default(), &shadow_mmu::Control::new())?;
        let nanos = report.seconds * 1e9 / f64::from(SWITCHES);
        let stats = vm.stats()?;
        let free = stats.total.lock.acquisitions[LockReason::Free as usize];
        // A broken pipe on stdout is no concern of an example.
        let _ = writeln!(
            out,
            "{policy:>8}: {nanos:6.1} ns a switch, {:8} acquisitions of the mmu_lock ({free} to free roots), {:?}",
            stats.total.lock.total() - before,
            began.elapsed()
        );
    }
    Ok(())
}
