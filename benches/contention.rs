//! Rows 2, 3 and 6: the fast CR3 switch against the locked one for each kind of lock, how the fast one scales, and the root
//! cache with too few roots and with enough.
//!
//! One binary, one run, samples in the order A B B A; the policy is the only difference. A switch is a CR3 write and the
//! guest entry after it, where the locked policy loads the root that the write freed; then `g` of guest work. A sample
//! counts only if it is clean: 1 to 3 ms long, no thread preempted, all threads at work for 90 % of it. Nine clean ones on
//! each side, or the row says `noisy` and gives no ratio. Four vCPUs on fewer processors are measured without that guard, in
//! samples of some slices of the scheduler. Counts are asserted: a wrong one ends the run without a table.

mod duel;
mod support;

use std::{env, fs, io::Write, path::PathBuf};

use duel::{Arena, Contest, Cost, Counts, Load, shown};
use serde_json::{Value, json};
use shadow_mmu::{LockKind, Op, OpKind, Policy, RunOptions};
use support::guest::{self, Kpti};

/// Guest work between two switches, in nanoseconds.
const WORK: [u64; 3] = [0, 300, 1400];
/// Processes of the round robin: six CR3s, more than a current root and three previous ones.
const PROCESSES: usize = 3;
/// Switches of each vCPU in a run that times the lock; clean runs of which the median is taken, and runs tried for them.
const TIMED: usize = 8_000;
const TIMED_RUNS: usize = 5;
const TIMED_TRIES: usize = 100;

/// Medians of a lock under policy `locked`, in nanoseconds, the clock's own 30 ns included; in a run of their own.
#[derive(Clone, Copy)]
struct LockTimes {
    hold: u64,
    wait: u64,
}

impl LockTimes {
    /// Medians over some clean runs: in others the vCPUs hardly meet. More vCPUs than processors have none.
    fn measure(lock: LockKind, vcpus: usize, shared: bool) -> Self {
        let crowded = vcpus > duel::cores().len();
        let mut runs = Vec::new();
        for left in (0..TIMED_TRIES).rev() {
            let (times, clean) = Self::one_run(lock, vcpus, shared);
            if clean || crowded || left < TIMED_RUNS {
                runs.push(times);
            }
            if runs.len() == TIMED_RUNS {
                break;
            }
        }
        let middle = |time: fn(&Self) -> u64| {
            let mut times: Vec<u64> = runs.iter().map(time).collect();
            times.sort_unstable();
            times[TIMED_RUNS / 2]
        };
        Self { hold: middle(|run| run.hold), wait: middle(|run| run.wait) }
    }

    fn one_run(lock: LockKind, vcpus: usize, shared: bool) -> (Self, bool) {
        let make = Kpti { lock, vcpus, shared, lock_times: true, ..Kpti::new(Policy::Locked) };
        let (vm, routes) = make.build();
        for (index, route) in routes.iter().enumerate() {
            route.warm_up(&mut vm.cpu(index).expect("nobody else drives the vCPU"));
        }
        let program = |route: &guest::Route| -> Vec<Op> {
            let switches = route.roots.iter().cycle().take(TIMED);
            switches.flat_map(|&root| [Op::new(OpKind::WriteCr3, root), guest::ENTER]).collect()
        };
        let programs: Vec<Vec<Op>> = routes.iter().map(program).collect();
        let programs: Vec<&[Op]> = programs.iter().map(Vec::as_slice).collect();
        let control = shadow_mmu::Control::new();
        let options = RunOptions { pin: true, ..RunOptions::default() };
        let report = shadow_mmu::run(&vm, &programs, &[], options, &control).expect("the programs are valid");
        assert_eq!((report.ops_done, report.faults), (vec![2 * TIMED as u64; vcpus], 0));
        let times = vm.stats().expect("nobody drives a vCPU").total.lock.times.expect("times were asked for");
        let clean = report.overlap >= 0.9 * report.seconds && report.starved.unwrap_or(0.0) <= 0.01 * report.seconds;
        (Self { hold: times.hold.quantiles().p50, wait: times.wait.quantiles().p50 }, clean)
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or("noisy".into(), |ratio| format!("{ratio:.2}x"))
}

/// One make of two machines, and the numbers of vCPUs and amounts of work to compare them at.
fn fight(machines: [Kpti; 2], cost: [Cost; 2], vcpus: &[usize]) -> (Vec<(usize, u64, duel::Result)>, Counts) {
    let arena = Arena::new(machines);
    let cases: Vec<(usize, u64)> = vcpus.iter().flat_map(|&vcpus| WORK.map(|work| (vcpus, work))).collect();
    let contest =
        |&(vcpus, work): &(usize, u64)| -> Contest { [Load { vcpus, entering: true, work: duel::spins_for(work) }; 2] };
    let (results, counts) = arena.fight(&cases.iter().map(contest).collect::<Vec<_>>());
    counts.assert_cost(cost);
    (cases.into_iter().zip(results).map(|((vcpus, work), result)| (vcpus, work, result)).collect(), counts)
}

/// Which vCPUs have roots of their own or not, and how many vCPUs there are. Four with roots of their own only: what a
/// spinning lock does whose holder is preempted.
const CROWDS: [(bool, &[usize]); 2] = [(false, &[1, 2, 4]), (true, &[1, 2])];

/// The times of each kind of lock in each crowd. To be asked for before any thread is pinned: this one's threads inherit that.
fn lock_times() -> Vec<((LockKind, bool, usize), LockTimes)> {
    let mut found = Vec::new();
    for (_, lock) in LockKind::ALL {
        for (shared, vcpus) in CROWDS {
            found.extend(vcpus.iter().map(|&count| ((lock, shared, count), LockTimes::measure(lock, count, shared))));
        }
    }
    found
}

/// Rows 2: fast against locked, for each kind of lock.
fn fast_against_locked(
    out: &mut impl Write,
    timed: &[((LockKind, bool, usize), LockTimes)],
) -> std::io::Result<Vec<Value>> {
    writeln!(out, "\nCR3 switch under KPTI, fast against locked, M switches/s of all vCPUs together")?;
    writeln!(
        out,
        "{:<7} {:<7} {:>5} {:>6} {:>8} {:>8} {:>8} {:>7} {:>7}  acquisitions a switch",
        "lock", "roots", "vCPUs", "g ns", "fast", "locked", "ratio", "hold ns", "wait ns"
    )?;
    let mut rows = Vec::new();
    for (name, lock) in LockKind::ALL {
        for (shared, vcpus) in CROWDS {
            let make = |policy| Kpti { lock, vcpus: vcpus[vcpus.len() - 1], shared, ..Kpti::new(policy) };
            let (results, counts) =
                fight([make(Policy::Seed), make(Policy::Locked)], [Cost::LockFree, Cost::Locked], vcpus);
            let roots = if shared { "shared" } else { "own" };
            for (count, work, result) in results {
                let found = timed.iter().find(|(key, _)| *key == (lock, shared, count));
                let LockTimes { hold, wait } = found.expect("every crowd was timed").1;
                let [fast, locked] = result.rates();
                let taken = [0, 1].map(|side| counts.per_switch(side));
                writeln!(
                    out,
                    "{name:<7} {roots:<7} {count:>5} {work:>6} {:>8} {:>8} {:>8} {hold:>7} {wait:>7}  {:.2} / {:.2}",
                    shown(fast),
                    shown(locked),
                    times(result.ratio()),
                    taken[0],
                    taken[1],
                )?;
                rows.push(json!({
                    "lock": name, "roots": roots, "vcpus": count, "work_ns": work, "hold_ns": hold, "wait_ns": wait,
                    "ratio": result.ratio(), "fast": result.summary(0), "locked": result.summary(1),
                    "crowded": count > duel::cores().len(), "acquisitions_per_switch": taken,
                }));
            }
        }
    }
    Ok(rows)
}

/// Row 3: two vCPUs against one, the same policy on both sides.
fn scaling(out: &mut impl Write) -> std::io::Result<Vec<Value>> {
    writeln!(out, "\nScaling from 1 to 2 vCPUs, own roots, g = 0, M switches/s")?;
    writeln!(out, "{:<22} {:>9} {:>9} {:>8}", "", "1 vCPU", "2 vCPUs", "ratio")?;
    let mut rows = Vec::new();
    let fast =
        [("seed, write alone", Policy::Seed, false), ("seed", Policy::Seed, true), ("lru:3", Policy::Lru(3), true)];
    let fast = fast.map(|(name, policy, entering)| (name.to_owned(), Kpti::new(policy), entering, Cost::LockFree));
    let locked = LockKind::ALL.map(|(name, lock)| {
        (format!("locked, {name}"), Kpti { lock, ..Kpti::new(Policy::Locked) }, true, Cost::Locked)
    });
    for (name, make, entering, cost) in fast.into_iter().chain(locked) {
        let make = Kpti { vcpus: 2, ..make };
        let load = |vcpus| Load { vcpus, entering, work: 0 };
        let (results, counts) = Arena::new([make; 2]).fight(&[[load(2), load(1)]]);
        counts.assert_cost([cost; 2]);
        let [two, one] = results[0].rates();
        let ratio = results[0].ratio();
        writeln!(out, "{name:<22} {:>9} {:>9} {:>8}", shown(one), shown(two), times(ratio))?;
        rows.push(json!({"case": name, "ratio": ratio, "two": results[0].summary(0), "one": results[0].summary(1)}));
    }
    Ok(rows)
}

/// Row 6 on two vCPUs: six CR3s in turn, on caches that hold two, four and nine roots.
fn round_robin(out: &mut impl Write) -> std::io::Result<Vec<Value>> {
    writeln!(out, "\nSix CR3s in turn (three processes under KPTI), own roots, M switches/s")?;
    writeln!(
        out,
        "{:<6} {:>5} {:>6} {:>9} {:>9} {:>8}  acquisitions a switch",
        "", "vCPUs", "g ns", "few", "lru:8", "repair"
    )?;
    let mut rows = Vec::new();
    for previous in [1, 3] {
        let make = |previous| Kpti { vcpus: 2, processes: PROCESSES, ..Kpti::new(Policy::Lru(previous)) };
        let (results, counts) = fight([make(8), make(previous)], [Cost::LockFree, Cost::Locked], &[1, 2]);
        for (vcpus, work, result) in results {
            let [large, small] = result.rates();
            let taken = [0, 1].map(|side| counts.per_switch(side));
            let name = format!("lru:{previous}");
            writeln!(
                out,
                "{name:<6} {vcpus:>5} {work:>6} {:>9} {:>9} {:>8}  {:.2} / {:.2}",
                shown(small),
                shown(large),
                times(result.ratio()),
                taken[1],
                taken[0],
            )?;
            rows.push(json!({
                "policy": name, "vcpus": vcpus, "work_ns": work, "ratio": result.ratio(), "large": result.summary(0),
                "small": result.summary(1), "acquisitions_per_switch": taken,
            }));
        }
    }
    Ok(rows)
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return writeln!(out, "contention: skip (two processors are needed)");
    }
    let timed = lock_times();
    duel::pin(0);
    let contention = fast_against_locked(&mut out, &timed)?;
    let scaling = scaling(&mut out)?;
    let round_robin = round_robin(&mut out)?;
    if let Some(folder) = env::var_os("BENCH_OUT").map(PathBuf::from) {
        fs::create_dir_all(&folder)?;
        let report = json!({"contention": contention, "scaling": scaling, "round_robin": round_robin});
        fs::write(folder.join("contention.json"), report.to_string())?;
    }
    Ok(())
}
