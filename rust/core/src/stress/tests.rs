use std::time::{Duration, Instant};

use super::{guest::ALIAS, *};
use crate::{
    Gpa, Gva, Host, MemoryRegion, MmuKind, Policy, VmConfig, access::AccessFlags, op::Outcome, stats::LockReason,
};

fn machine(vcpus: usize, policy: Policy) -> Vm {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), bytes_needed(vcpus))];
    Vm::new(VmConfig { slots, vcpus, policy, ..VmConfig::default() }).unwrap()
}

/// Something that is done before each step.
struct Hook<F>(F);

impl<F: Fn(usize, &threads::Floor<'_>) + Sync> Rig for Hook<F> {
    type Stay = ();

    fn enter(&self, _vcpu: usize) {}

    fn before_step(&self, vcpu: usize, floor: &threads::Floor<'_>) {
        (self.0)(vcpu, floor);
    }
}

fn steps(seed: u64, steps: u64) -> StressConfig {
    StressConfig { seed, limit: Limit::Steps(steps), audit_every: 200, ..StressConfig::default() }
}

fn turns(seed: u64) -> StressConfig {
    StressConfig { interleaving: Interleaving::Turns, ..steps(seed, 1500) }
}

#[test]
fn d5_every_outcome_is_right_in_turns_under_every_policy() {
    for policy in [Policy::Locked, Policy::Seed, Policy::Lru(0), Policy::Lru(3)] {
        for seed in 0..4 {
            let report = stress(&machine(3, policy), &turns(seed), &Control::new()).unwrap();
            assert!(report.ok(), "{policy} seed {seed}: {:#?}", report.findings);
            let figures = report.figures;
            assert!(figures.accesses_checked > 3000 && figures.shoot_downs > 200, "{figures:?}");
            assert!(figures.table_reuses > 5 && figures.faults > 50 && figures.unjudged == 0, "{figures:?}");
            assert!(figures.faults < figures.accesses_checked * 2 / 3, "most accesses reach something: {figures:?}");
            assert!(figures.register_writes > 0 && figures.host_operations > 0 && report.audits > 10, "{figures:?}");
        }
    }
}

#[test]
fn e044_every_outcome_is_right_in_turns_in_two_dimensions() {
    for policy in [Policy::Locked, Policy::Seed, Policy::Lru(0), Policy::Lru(3)] {
        let slots = vec![MemoryRegion::ram(Gpa::new(0), bytes_needed(3))];
        let vm = Vm::new(VmConfig { slots, vcpus: 3, policy, mmu: MmuKind::Tdp, ..VmConfig::default() }).unwrap();
        let report = stress(&vm, &turns(7), &Control::new()).unwrap();
        assert!(report.ok(), "{policy}: {:#?}", report.findings);
        assert!(report.figures.accesses_checked > 3000 && report.figures.shoot_downs > 200, "{:?}", report.figures);
    }
}

#[test]
fn a_run_in_turns_is_a_function_of_its_seed() {
    let run = |seed| stress(&machine(2, Policy::Lru(3)), &turns(seed), &Control::new()).unwrap().record.unwrap();
    let (one, again, other) = (run(1), run(1), run(2));
    assert!(one.ops.len() > 3000);
    assert_eq!(one, again);
    assert_ne!(one.ops, other.ops);
}

#[test]
fn a_machine_of_the_wrong_shape_is_refused() {
    let refused_slots = |slots: Vec<MemoryRegion>, config: &StressConfig| {
        let vm = Vm::new(VmConfig { slots, vcpus: 2, ..VmConfig::default() }).unwrap();
        stress(&vm, config, &Control::new()).unwrap_err().to_string()
    };
    let refused = |slots: Vec<(u64, u64)>, config: &StressConfig| {
        refused_slots(slots.into_iter().map(|(gpa, bytes)| MemoryRegion::ram(Gpa::new(gpa), bytes)).collect(), config)
    };
    let enough = bytes_needed(2);
    assert!(refused(vec![(0, enough), (1 << 30, 4096)], &steps(0, 1)).contains("one, at gpa 0"));
    assert!(refused(vec![(4096, enough)], &steps(0, 1)).contains("one, at gpa 0"));
    let rom = refused_slots(vec![MemoryRegion::rom(Gpa::new(0), enough)], &steps(0, 1));
    assert!(rom.contains("read-only"), "{rom}");
    assert!(refused(vec![(0, 1 << 20)], &steps(0, 1)).contains("at most 0 with 1048576 bytes"));
    let timed = StressConfig { limit: Limit::Seconds(1.0), ..turns(0) };
    assert!(refused(vec![(0, enough)], &timed).contains("steps"));
    for limit in [Limit::Seconds(0.0), Limit::Seconds(f64::NAN), Limit::Seconds(-1.0), Limit::Steps(0)] {
        let error = refused(vec![(0, enough)], &StressConfig { limit, ..steps(0, 1) });
        assert!(error.contains("seconds") || error.contains("steps"), "{error}");
    }
    assert!(Rates::default().set("nonsense", 1).unwrap_err().to_string().contains("access, switch, leaf"));
}

#[test]
fn a_store_that_nobody_made_is_found_at_the_end() {
    // The first data frame follows the page of signals and the page that is never used.
    for (gpa, what) in [(2 * PAGE_SIZE, "stored 0x"), (2 * PAGE_SIZE + 511 * 8, "signature")] {
        let vm = machine(2, Policy::Lru(3));
        let spoil = |vcpu: usize, floor: &threads::Floor<'_>| {
            if vcpu == 1 && floor.clock.steps(1).0 > 100 {
                floor.vm.host_write(Gpa::new(gpa), &[0xee; 8]).unwrap();
            }
        };
        let config = StressConfig { keep_going: true, ..steps(3, 400) };
        let report = stress_with(&vm, &config, &Control::new(), &Hook(spoil)).unwrap();
        assert!(!report.ok());
        let found = report.findings.iter().any(|found| found.what == "memory" && found.text.contains(what));
        assert!(found, "{:#?}", report.findings);
    }
}

#[test]
fn d5_a_table_changed_behind_the_oracle_is_found_by_an_access() {
    let vm = machine(2, Policy::Lru(3));
    let (guest, _) = Guest::new(2, bytes_needed(2)).unwrap();
    let entry = guest.estates[0].leaves[0].word.gpa;
    let spoil = |vcpu: usize, floor: &threads::Floor<'_>| {
        if vcpu == 0 {
            floor.vm.host_write(Gpa::new(entry), &((guest.frames[0] + 25 * PAGE_SIZE) | 0x67).to_le_bytes()).unwrap();
        }
    };
    let report = stress_with(&vm, &steps(5, 3000), &Control::new(), &Hook(spoil)).unwrap();
    assert!(report.findings.iter().any(|found| found.what == "D.5" || found.what == "memory"), "{report:#?}");
}

#[test]
fn a_vcpu_that_stops_is_reported_with_what_everybody_is_at() {
    let vm = machine(2, Policy::Lru(3));
    let stall = |vcpu: usize, floor: &threads::Floor<'_>| {
        while vcpu == 1 && floor.clock.steps(1).0 > 500 && !floor.is_over() {
            std::thread::yield_now();
        }
    };
    let config = StressConfig { patience: Duration::from_millis(200), audit_every: 0, ..steps(1, 1_000_000) };
    let began = Instant::now();
    let error = stress_with(&vm, &config, &Control::new(), &Hook(stall)).unwrap_err();
    let Error::Stuck { report } = error else { panic!("{error}") };
    assert!(report.starts_with("vCPU 1 made no step for 0.2"), "{report}");
    assert!(report.contains("\nvCPU 0: ") && report.contains("guest mode left"), "{report}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(vm.audit().unwrap().is_empty(), "the machine is usable");
}

#[test]
fn a_lock_that_is_kept_is_reported_with_holder_and_waiter_and_the_run_ends_when_it_is_released() {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), bytes_needed(2))];
    let vm = Vm::new(VmConfig { slots, vcpus: 2, lock_watch: true, ..VmConfig::default() }).unwrap();
    let keep = |vcpu: usize, floor: &threads::Floor<'_>| {
        if vcpu == 0 && floor.clock.steps(0).0 > 500 && !floor.is_over() {
            let mut cx = crate::mmu::MmuCx::new(None, floor.vm.config());
            let _held = floor.vm.shared.lock(&mut cx, LockReason::Host);
            while !floor.is_over() {
                std::thread::yield_now();
            }
        }
    };
    let config = StressConfig { patience: Duration::from_millis(200), ..steps(1, 1_000_000) };
    let error = stress_with(&vm, &config, &Control::new(), &Hook(keep)).unwrap_err();
    let Error::Stuck { report } = error else { panic!("{error}") };
    assert!(report.contains("\nmmu_lock: the host holding for host, for 0."), "{report}");
    assert!(report.contains("\nmmu_lock: vCPU 1 waiting for "), "{report}");
    assert!(vm.audit().unwrap().is_empty());
}

#[test]
fn r11_a_stop_is_heard_at_once_and_keeps_the_figures() {
    let vm = machine(2, Policy::Lru(3));
    let control = Control::new();
    let config = StressConfig { limit: Limit::Seconds(60.0), ..StressConfig::default() };
    let report = std::thread::scope(|scope| {
        let run = scope.spawn(|| stress(&vm, &config, &control));
        std::thread::sleep(Duration::from_millis(200));
        control.stop();
        run.join().unwrap().unwrap()
    });
    assert!(report.interrupted && report.ok() && report.figures.operations > 0, "{:?}", report.findings);
    assert!(report.seconds < 30.0);
}

#[test]
fn r11_retries_beyond_the_steps_of_the_others_are_counted() {
    let (guest, _) = Guest::new(2, bytes_needed(2)).unwrap();
    let clock = Clock::new(2);
    let rates = Rates::default();
    let mut actor = Actor::new(Stage { guest: &guest, clock: &clock, rates: &rates }, 0, 0, false);
    clock.step(1, 5, 0);
    actor.count_retries(&Op::new(OpKind::Read, 0), 21);
    assert_eq!((actor.figures.max_retries, actor.figures.violations), (16, 0));
    actor.count_retries(&Op::new(OpKind::Read, 0), 22);
    assert_eq!((actor.figures.max_retries, actor.figures.violations), (17, 1));
    assert!(actor.findings[0].to_string().contains("liveness"), "{:?}", actor.findings);
}

#[test]
fn the_windows_reach_all_of_memory() {
    let vm = machine(1, Policy::Lru(3));
    stress(&vm, &steps(0, 10), &Control::new()).unwrap();
    let mut cpu = vm.cpu(0).unwrap();
    let (guest, _) = Guest::new(1, bytes_needed(1)).unwrap();
    let _ = cpu.write_cr3(guest.processes[0].kernel).unwrap();
    for gpa in [0, guest.pages * PAGE_SIZE - 8] {
        let reached = cpu.access(Gva::new(ALIAS + gpa), crate::AccessKind::Read, AccessFlags::empty());
        assert_eq!(reached, Ok(Outcome::Ok(gpa)));
    }
}

#[test]
fn e043_a_host_of_32_bits_is_refused_before_anything_is_run() {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), bytes_needed(2))];
    let vm = Vm::new(VmConfig { slots, vcpus: 2, host: Host::Pae, ..VmConfig::default() }).unwrap();
    let error = stress(&vm, &turns(1), &Control::new()).map(|_| ()).map_err(|error| error.to_string());
    assert!(error.is_err_and(|said| said.contains("without long mode") && said.contains("four levels")));
    assert_eq!(vm.stats().unwrap().total.cr3.writes, 0);
}
