//! The way of an address through the shadow tables: looked at from outside, with nothing changed.

use shadow_mmu::{AccessFlags, AccessKind, Error, Gpa, Gva, Hpa, MemoryRegion, Policy, SpId, Vm, VmConfig};

const ROOT: u64 = 0x1000;
const GVA: u64 = 0x123;

/// A machine whose tables lead from `ROOT` to the page at 0x5000.
fn machine(policy: Policy) -> Vm {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), 2 << 20)];
    let vm = Vm::new(VmConfig { slots, vcpus: 2, policy, ..VmConfig::default() }).unwrap();
    for table in 1..5_u64 {
        vm.host_write(Gpa::new(table << 12), &(((table + 1) << 12) | 7).to_le_bytes()).unwrap();
    }
    for vcpu in 0..2 {
        let _ = vm.cpu(vcpu).unwrap().write_cr3(ROOT).unwrap();
    }
    vm
}

#[test]
fn a_path_ends_where_the_hardware_would_exit_or_reach() {
    let vm = machine(Policy::Lru(3));
    let path = |gva| vm.shadow_path(0, Gva::new(gva)).unwrap();
    assert_eq!((path(GVA).root, path(GVA).steps.len(), path(GVA).gpa()), (Hpa::INVALID, 0, None));
    let _ = vm.cpu(0).unwrap().access(Gva::new(GVA), AccessKind::Write, AccessFlags::empty()).unwrap();
    let found = path(GVA);
    assert_eq!((found.gpa(), found.steps.len(), found.entries), (Some(Gpa::new(0x5123)), 4, None));
    assert_eq!(found.root, SpId::new(found.steps[0].id).hpa());
    assert_eq!(found.tlb, Some(found.steps[3].spte));
    // No entry in the last table; none in the second; not canonical.
    assert_eq!((path(0x1000).steps.len(), path(0x1000).gpa()), (4, None));
    assert_eq!((path(1 << 30).steps.len(), path(1 << 30).gpa()), (2, None));
    assert_eq!((path(1 << 62).steps.len(), path(1 << 62).gpa()), (0, None));
    // The other vCPU has loaded no root.
    assert_eq!(vm.shadow_path(1, Gva::new(GVA)).unwrap().root, Hpa::INVALID);
}

#[test]
fn a_page_that_the_guest_changed_is_marked_on_the_way() {
    let vm = machine(Policy::Seed);
    // The last table maps itself as its second page.
    vm.host_write(Gpa::new(0x4008), &0x4067_u64.to_le_bytes()).unwrap();
    let mut cpu = vm.cpu(0).unwrap();
    let _ = cpu.access(Gva::new(GVA), AccessKind::Read, AccessFlags::empty()).unwrap();
    let _ = cpu.store(Gva::new(0x1000), 0x6067, 8, AccessFlags::empty()).unwrap();
    drop(cpu);
    let path = vm.shadow_path(0, Gva::new(GVA)).unwrap();
    assert_eq!(path.gpa(), Some(Gpa::new(0x5123)), "stale until INVLPG");
    assert_eq!(path.steps.iter().map(|step| step.unsync).collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!(path.steps.iter().map(|step| step.marked).collect::<Vec<_>>(), [true, true, true, false]);
}

#[test]
fn looking_changes_no_state_and_needs_a_machine_at_rest() {
    let vm = machine(Policy::Locked);
    let _ = vm.cpu(0).unwrap().access(Gva::new(GVA), AccessKind::Read, AccessFlags::empty()).unwrap();
    let (state, stats) = (vm.state_words().unwrap(), vm.stats().unwrap());
    for gva in [GVA, 0x1000, 1 << 30, 1 << 62, u64::MAX] {
        let path = vm.shadow_path(0, Gva::new(gva)).unwrap();
        assert_eq!(vm.shadow_path(0, Gva::new(gva)).unwrap(), path);
    }
    assert_eq!(
        (vm.state_words().unwrap(), vm.stats().unwrap().total.lock.acquisitions),
        (state, stats.total.lock.acquisitions)
    );
    assert_eq!(vm.shadow_path(2, Gva::new(0)), Err(Error::NoVcpu { vcpu: 2, count: 2 }));
    let _driven = vm.cpu(1).unwrap();
    assert_eq!(vm.shadow_path(0, Gva::new(0)), Err(Error::Busy { vcpu: 1 }));
}
