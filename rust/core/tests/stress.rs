//! The stress by the crate's public API: nothing is found in the machine as it is, and the rules that only concurrency needs
//! are missed when they are switched off.

use shadow_mmu::{
    Control, Error, Gpa, MemoryRegion, Mutant, Policy, Vm, VmConfig,
    stress::{self, Limit, StressConfig, StressReport},
};
use shadow_mmu_planted::apart;

fn run(vcpus: usize, policy: Policy, mutant: Mutant, config: &StressConfig) -> Result<StressReport, Error> {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), stress::bytes_needed(vcpus))];
    let vm = Vm::new(VmConfig { slots, vcpus, policy, mutant, lock_times: true, ..VmConfig::default() })?;
    // Apart: see there what ThreadSanitizer could not see otherwise.
    apart(|| stress::stress(&vm, config, &Control::new()))
}

fn seconds(seed: u64, seconds: f64) -> StressConfig {
    StressConfig { seed, limit: Limit::Seconds(seconds), audit_every: 5000, ..StressConfig::default() }
}

/// Other work on the machine may hold a lock's owner off its core for longer than any limit; that is no finding here.
fn but_for_holds(report: &StressReport) -> Vec<String> {
    report.findings.iter().filter(|found| found.what != "lock hold").map(ToString::to_string).collect()
}

#[test]
fn d5_every_outcome_is_right_while_all_vcpus_do_everything_at_once() {
    for (vcpus, policy) in [(2, Policy::Lru(3)), (2, Policy::Seed), (2, Policy::Locked), (8, Policy::Lru(1))] {
        let report = run(vcpus, policy, Mutant::None, &seconds(1, 0.7)).unwrap();
        let found = but_for_holds(&report);
        assert!(found.is_empty(), "{vcpus} vCPUs, {policy}: {found:#?}");
        let figures = report.figures;
        assert!(figures.shoot_downs > 0 && figures.accesses_checked > 1000, "{figures:?}");
        assert!(figures.unjudged < figures.accesses_checked / 50, "{figures:?}");
        assert!(report.longest_hold > 0 && report.audits > 1, "{report:?}");
    }
}

#[cfg(feature = "mutants")]
mod mutants {
    use std::time::{Duration, Instant};

    use super::*;

    /// Rules whose absence several vCPUs at once can see. Not here: `invlpg-keeps-tlb`, `sync-unsyncs` (what would be stale
    /// is flushed by something else), and those that change no translation without PCID, or only how fast one is had.
    const SEEN: [Mutant; 16] = [
        Mutant::SkipSync,
        Mutant::HostWriteUntracked,
        Mutant::ChildReuseIgnoresGfn,
        Mutant::ChildReuseIgnoresRole,
        Mutant::NoZapOnWrite,
        Mutant::NoRemoteFlush,
        Mutant::LinkDoesNotMark,
        Mutant::SyncWithoutProtect,
        Mutant::SyncWithoutFlush,
        Mutant::LinkWithoutSync,
        Mutant::MarkStopsEarly,
        Mutant::TableStaysWritable,
        Mutant::LeafRightsOnly,
        Mutant::InvlpgSkipsSync,
        Mutant::FaultKeepsEntry,
        Mutant::FlushKeepsTlb,
    ];

    /// What is found of a mutant, by the accesses alone or with audits on the way.
    fn hunt(mutant: Mutant, audit_every: u64, patience: Duration) -> Option<(Duration, String)> {
        let began = Instant::now();
        for seed in 0.. {
            let config = StressConfig { audit_every, ..seconds(seed, 0.5) };
            let found = match run(2, Policy::Lru(3), mutant, &config) {
                Ok(report) => but_for_holds(&report).into_iter().next(),
                Err(error) => Some(error.to_string()),
            };
            if let Some(found) = found {
                return Some((began.elapsed(), found));
            }
            if began.elapsed() > patience {
                return None;
            }
        }
        None
    }

    #[test]
    fn d5_every_rule_that_concurrency_needs_is_missed_within_seconds() {
        for mutant in SEEN {
            let (after, found) =
                hunt(mutant, 500, Duration::from_secs(30)).unwrap_or_else(|| panic!("{mutant:?} was not caught"));
            eprintln!("{mutant:?}: {after:.1?}: {}", found.lines().next().unwrap_or_default());
        }
    }

    /// Without an audit on the way nothing but the oracle, memory at the end and the last sweep can tell.
    #[test]
    fn d5_the_oracle_alone_sees_a_flush_that_reaches_nobody_and_a_sync_that_does_nothing() {
        for mutant in [Mutant::NoRemoteFlush, Mutant::SkipSync, Mutant::LinkWithoutSync, Mutant::InvlpgSkipsSync] {
            let (_, found) = hunt(mutant, 0, Duration::from_secs(30)).unwrap_or_else(|| panic!("{mutant:?}"));
            assert!(found.starts_with("D.5"), "{mutant:?}: {found}");
        }
    }

    #[test]
    fn r11_a_root_that_is_zapped_in_silence_ends_in_a_typed_report() {
        let config = StressConfig { patience: Duration::from_secs(2), ..seconds(0, 20.0) };
        match run(2, Policy::Lru(3), Mutant::ObsoleteUnannounced, &config) {
            Ok(report) => {
                assert!(report.findings.iter().any(|found| found.what == "liveness"), "{:?}", report.findings);
            }
            Err(Error::Stuck { report }) => assert!(report.contains("made no step for 2."), "{report}"),
            Err(error) => panic!("{error}"),
        }
    }
}
