//! Rows 2 and 3: the fast CR3 switch against the locked one on two vCPU threads, and how the fast one scales.
//!
//! One binary, one run, samples in the order A B B A; the policy is the only difference. A switch is a CR3 write and the
//! guest entry after it, where the locked policy loads the root that the write freed; then `g` of guest work. A sample
//! counts only if it is clean: 1 to 3 ms long, no thread preempted, all threads at work for 90 % of it. Nine clean ones on
//! each side, or the row says `noisy` and gives no ratio. Counts are asserted: a wrong one ends the run without a table.

mod duel;
mod support;

use std::{env, fs, io::Write, path::PathBuf};

use duel::{Arena, Load};
use serde_json::{Value, json};
use shadow_mmu::{Op, OpKind, Policy, RunOptions};
use support::guest;

/// Guest work between two switches, in nanoseconds.
const WORK: [u64; 3] = [0, 300, 1400];

/// The median hold of the `mmu_lock` under policy `locked`, in nanoseconds, timing included (about 30 ns).
fn median_hold() -> u64 {
    let (vm, pairs) = guest::kpti(Policy::Locked, 1, false, true);
    guest::warm_up(&mut vm.cpu(0).expect("nobody else drives the vCPU"), &pairs[0]);
    let switch = |n| [Op::new(OpKind::WriteCr3, pairs[0].root(n)), guest::ENTER];
    let program: Vec<Op> = (0..20_000).flat_map(switch).collect();
    let control = shadow_mmu::Control::new();
    let report = shadow_mmu::run(&vm, &[&program], &[], RunOptions::default(), &control).expect("the program is valid");
    assert_eq!((report.ops_done[0], report.faults), (40_000, 0));
    let times = vm.stats().expect("nobody drives the vCPU").total.lock.times;
    times.expect("times were asked for").hold.quantiles().p50
}

/// Rows 2: fast against locked.
fn fast_against_locked(out: &mut impl Write, hold: u64) -> std::io::Result<Vec<Value>> {
    writeln!(
        out,
        "\nCR3 switch under KPTI, fast against locked, M switches/s of all vCPUs together (median hold {hold} ns)"
    )?;
    writeln!(
        out,
        "{:<8} {:>5} {:>8} {:>9} {:>9} {:>8}  acquisitions a switch",
        "roots", "vCPUs", "g ns", "fast", "locked", "ratio"
    )?;
    let mut rows = Vec::new();
    for shared in [false, true] {
        let arena = Arena::new([Policy::Seed, Policy::Locked], shared);
        let mut contests = Vec::new();
        for vcpus in [1, 2] {
            for work in WORK {
                let load = Load { vcpus, entering: true, work: duel::spins_for(work) };
                contests.push((work, vcpus, [load; 2]));
            }
        }
        let (results, counts) = arena.fight(&contests.iter().map(|(_, _, contest)| *contest).collect::<Vec<_>>());
        counts.assert_fast_and_locked();
        for ((work, vcpus, _), result) in contests.iter().zip(&results) {
            let roots = if shared { "shared" } else { "own" };
            let [fast, locked] = result.rates();
            let ratio = result.ratio();
            writeln!(
                out,
                "{roots:<8} {vcpus:>5} {:>8} {fast:>9} {locked:>9} {:>8}  {:.2} / {:.2}",
                work,
                ratio.map_or("noisy".into(), |ratio| format!("{ratio:.1}x")),
                counts.per_switch(0),
                counts.per_switch(1),
                fast = duel::shown(fast),
                locked = duel::shown(locked),
            )?;
            rows.push(json!({
                "roots": roots, "vcpus": vcpus, "work_ns": work, "hold_ns": hold, "ratio": ratio,
                "fast": result.summary(0), "locked": result.summary(1),
                "acquisitions_per_switch": [counts.per_switch(0), counts.per_switch(1)],
            }));
        }
    }
    Ok(rows)
}

/// Row 3: two vCPUs against one, the same policy on both sides.
fn scaling(out: &mut impl Write) -> std::io::Result<Vec<Value>> {
    writeln!(out, "\nScaling from 1 to 2 vCPUs, own roots, g = 0, M switches/s")?;
    writeln!(out, "{:<22} {:>9} {:>9} {:>8}", "", "1 vCPU", "2 vCPUs", "ratio")?;
    let mut rows = Vec::new();
    let cases =
        [("seed, write alone", Policy::Seed, false), ("seed", Policy::Seed, true), ("locked", Policy::Locked, true)];
    for (name, policy, entering) in cases {
        let arena = Arena::new([policy, policy], false);
        let load = |vcpus| Load { vcpus, entering, work: 0 };
        let (results, counts) = arena.fight(&[[load(2), load(1)]]);
        if policy == Policy::Seed {
            counts.assert_lock_free();
        }
        let [two, one] = results[0].rates();
        let ratio = results[0].ratio();
        let shown = ratio.map_or("noisy".into(), |ratio| format!("{ratio:.2}x"));
        writeln!(out, "{name:<22} {:>9} {:>9} {shown:>8}", duel::shown(one), duel::shown(two))?;
        rows.push(json!({"case": name, "ratio": ratio, "two": results[0].summary(0), "one": results[0].summary(1)}));
    }
    Ok(rows)
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return writeln!(out, "contention: skip (two processors are needed)");
    }
    duel::pin(0);
    let hold = median_hold();
    let contention = fast_against_locked(&mut out, hold)?;
    let scaling = scaling(&mut out)?;
    if let Some(folder) = env::var_os("BENCH_OUT").map(PathBuf::from) {
        fs::create_dir_all(&folder)?;
        let report = json!({"hold_ns": hold, "contention": contention, "scaling": scaling});
        fs::write(folder.join("contention.json"), report.to_string())?;
    }
    Ok(())
}
