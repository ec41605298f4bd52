//! Two machines, two vCPU threads, clean samples: who does more switches a second.

#![allow(unreachable_pub, reason = "a bench is a program of its own")]
#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "counts and times of a second, as rates")]

use core::hint::black_box;
use std::{
    sync::{
        OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use core_affinity::CoreId;
use serde_json::{Value, json};
use shadow_mmu::{Cpu, Policy, Vm};
use shadow_mmu_sync::{AtomicU64, Ordering, spin_loop};

use crate::support::{
    guest::{self, Pair, enter, switch},
    measure::{median, preemptions},
};

/// Clean samples wanted on each side.
const CLEAN: usize = 9;
/// Samples tried on each side before the row is noisy.
const TRIES: usize = 400;
/// A clean sample is this long.
const LENGTH: core::ops::RangeInclusive<f64> = 1e-3..=3e-3;
/// What a sample aims at.
const AIM: f64 = 1.6e-3;
/// Part of the sample in which all threads are at work.
const OVERLAP: f64 = 0.9;

/// Pins the calling thread to a processor; a machine that refuses is left alone, and its samples are unclean.
pub fn pin(index: usize) {
    // Asked for once: a pinned thread, and the threads it starts, see only the processor that they are pinned to.
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    let cores = CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default());
    if let Some(&core) = cores.get(index) {
        core_affinity::set_for_current(core);
    }
}

/// Guest work: a chain of dependent steps, with no clock and no memory.
#[inline]
fn work(spins: u32) {
    let mut x = u64::from(spins) | 1;
    for _ in 0..spins {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x);
}

/// Steps of [`work`] that take about this many nanoseconds on this machine now.
pub fn spins_for(nanos: u64) -> u32 {
    const STEPS: u32 = 1_000_000;
    let time = |_| {
        let began = Instant::now();
        work(black_box(STEPS));
        began.elapsed()
    };
    let best = (0..5).map(time).min().unwrap_or(Duration::ZERO);
    (nanos as f64 * f64::from(STEPS) / best.as_nanos() as f64).round() as u32
}

/// What one side of a contest does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Threads, 1 or 2.
    pub vcpus: usize,
    /// Whether the guest is entered after each write.
    pub entering: bool,
    /// Steps of guest work after that.
    pub work: u32,
}

/// Side 0 on machine 0 and side 1 on machine 1, measured in turns.
pub type Contest = [Load; 2];

/// What one thread did in one sample.
#[derive(Clone, Copy, Debug)]
struct Part {
    began: Instant,
    ended: Instant,
    preempted: bool,
}

/// A job for the second thread.
struct Job {
    machine: usize,
    load: Load,
    switches: u64,
    gate: u64,
}

/// Where two threads meet: the count of arrivals.
struct Gate(AtomicU64);

impl Gate {
    /// Waits until `count` threads have come since the start.
    fn meet(&self, count: u64) {
        // ORDERING: a bench's own rendezvous; what it hands over goes through the channels.
        self.0.fetch_add(1, Ordering::AcqRel);
        // It never yields: a thread that gave its processor away would come late to the start.
        while self.0.load(Ordering::Acquire) < count {
            spin_loop();
        }
    }
}

/// Does `switches` switches, an even number, from the kernel back to the kernel.
fn drive(cpu: &mut Cpu<'_>, pair: &Pair, load: Load, switches: u64) -> Part {
    let before = preemptions();
    let began = Instant::now();
    for n in 0..switches {
        switch(cpu, black_box(pair.root(n)));
        if load.entering {
            enter(cpu);
        }
        work(load.work);
    }
    let ended = Instant::now();
    Part { began, ended, preempted: preemptions() != before }
}

/// Clean rates of both sides, in switches a second of all threads together.
#[derive(Debug, Default)]
pub struct Result {
    clean: [Vec<f64>; 2],
    tries: [usize; 2],
}

impl Result {
    /// Median rate of each side, if there were enough clean samples.
    pub fn rates(&self) -> [Option<f64>; 2] {
        [0, 1].map(|side| (self.clean[side].len() >= CLEAN).then(|| median(&self.clean[side])))
    }

    /// Side 0 over side 1, if both are clean.
    pub fn ratio(&self) -> Option<f64> {
        let [fast, locked] = self.rates();
        Some(fast? / locked?)
    }

    /// For the report: median and least nanoseconds a switch, as one thread sees it over all.
    pub fn summary(&self, side: usize) -> Value {
        let best = self.clean[side].iter().copied().fold(0.0, f64::max);
        json!({
            "median_per_s": self.rates()[side], "best_per_s": best,
            "clean": self.clean[side].len(), "tries": self.tries[side],
        })
    }
}

/// A rate for people, in millions a second.
pub fn shown(rate: Option<f64>) -> String {
    rate.map_or("noisy".into(), |rate| format!("{:.2}", rate / 1e6))
}

/// What the machines counted over all samples, clean or not.
#[derive(Debug)]
pub struct Counts {
    asked: [u64; 2],
    lockless: [u64; 2],
    acquisitions: [u64; 2],
}

impl Counts {
    /// Acquisitions of the `mmu_lock` a switch on one machine.
    pub fn per_switch(&self, machine: usize) -> f64 {
        self.acquisitions[machine] as f64 / self.asked[machine] as f64
    }

    /// No acquisition on machine 0, one or more for each switch on machine 1.
    pub fn assert_fast_and_locked(&self) {
        assert_eq!((self.acquisitions[0], self.lockless[0]), (0, self.asked[0]), "the fast path: {self:?}");
        assert!(self.acquisitions[1] >= self.asked[1] && self.lockless[1] == 0, "the locked path: {self:?}");
    }

    /// No acquisition on either.
    pub fn assert_lock_free(&self) {
        assert_eq!((self.acquisitions, self.lockless), ([0, 0], self.asked), "the fast path: {self:?}");
    }
}

/// Two machines with two vCPUs each, and who drives them.
pub struct Arena {
    machines: [(Vm, Vec<Pair>); 2],
}

impl Arena {
    /// Machines of these policies; both vCPUs of a machine have roots of their own, or the same.
    pub fn new(policies: [Policy; 2], shared_roots: bool) -> Self {
        Self { machines: policies.map(|policy| guest::kpti(policy, 2, shared_roots, false)) }
    }

    /// Runs the contests and checks both machines after them.
    pub fn fight(&self, contests: &[Contest]) -> (Vec<Result>, Counts) {
        for (vm, pairs) in &self.machines {
            for (index, pair) in pairs.iter().enumerate() {
                guest::warm_up(&mut vm.cpu(index).expect("no thread runs yet"), pair);
            }
        }
        let before = self.counted();
        let (jobs, queue) = channel();
        let (done, parts) = channel();
        let gate = Gate(AtomicU64::new(0));
        let (results, asked) = thread::scope(|scope| {
            let gate = &gate;
            scope.spawn(move || self.second(&queue, &done, gate));
            // The second thread ends when the referee goes, with its end of the channel.
            let mut referee = Referee { arena: self, cpus: self.cpus(0), jobs, parts, gate, met: 0, asked: [0; 2] };
            let results = contests.iter().map(|contest| referee.contest(contest)).collect();
            (results, referee.asked)
        });
        let after = self.counted();
        let difference = |which: usize| [0, 1].map(|machine| after[machine][which] - before[machine][which]);
        let counts = Counts { asked, lockless: difference(1), acquisitions: difference(2) };
        assert_eq!(difference(0), asked, "switches counted and asked for");
        for (vm, pairs) in &self.machines {
            for (index, pair) in pairs.iter().enumerate() {
                guest::check_after(vm, index, pair);
            }
            assert_eq!(vm.audit().map(|found| found.len()), Ok(0));
        }
        (results, counts)
    }

    /// CR3 writes, those that took no lock, and acquisitions, of each machine.
    fn counted(&self) -> [[u64; 3]; 2] {
        [0, 1].map(|machine| {
            let total = self.machines[machine].0.stats().expect("no thread runs").total;
            [total.cr3.writes, total.cr3.lockless, total.lock.total()]
        })
    }

    fn cpus(&self, index: usize) -> [Cpu<'_>; 2] {
        [0, 1].map(|machine| self.machines[machine].0.cpu(index).expect("one thread a vCPU"))
    }

    /// The second thread: vCPU 1 of both machines.
    fn second(&self, queue: &Receiver<Job>, done: &Sender<Part>, gate: &Gate) {
        pin(1);
        let mut cpus = self.cpus(1);
        for Job { machine, load, switches, gate: count } in queue {
            gate.meet(count);
            let part = drive(&mut cpus[machine], &self.machines[machine].1[1], load, switches);
            if done.send(part).is_err() {
                return;
            }
        }
    }
}

/// The first thread: vCPU 0 of both machines, and the judge of samples.
struct Referee<'a> {
    arena: &'a Arena,
    cpus: [Cpu<'a>; 2],
    jobs: Sender<Job>,
    parts: Receiver<Part>,
    gate: &'a Gate,
    met: u64,
    asked: [u64; 2],
}

impl Referee<'_> {
    /// Samples in the order A B B A until both sides have enough clean ones.
    fn contest(&mut self, contest: &Contest) -> Result {
        let mut switches = [256_u64; 2];
        let mut result = Result::default();
        for side in [0, 1, 1, 0].into_iter().cycle() {
            if result.clean.iter().all(|clean| clean.len() >= CLEAN) || result.tries[side] >= TRIES {
                break;
            }
            result.tries[side] += 1;
            let (rate, seconds, clean) = self.sample(side, contest[side], switches[side]);
            if clean {
                result.clean[side].push(rate);
            }
            if !LENGTH.contains(&seconds) {
                // In steps: one preempted sample must not set the length of the next.
                let factor = (AIM / seconds).clamp(0.25, 8.0);
                switches[side] = ((switches[side] as f64 * factor) as u64).max(64) & !1;
            }
        }
        result
    }

    /// One sample: its rate, its length, and whether it is clean.
    fn sample(&mut self, machine: usize, load: Load, switches: u64) -> (f64, f64, bool) {
        if load.vcpus == 2 {
            self.met += 2;
            self.jobs.send(Job { machine, load, switches, gate: self.met }).expect("the second thread runs");
            self.gate.meet(self.met);
        }
        let mut parts = vec![drive(&mut self.cpus[machine], &self.arena.machines[machine].1[0], load, switches)];
        if load.vcpus == 2 {
            parts.push(self.parts.recv().expect("the second thread runs"));
        }
        let all = switches * load.vcpus as u64;
        self.asked[machine] += all;
        let first = |time: fn(&Part) -> Instant| parts.iter().map(time).min().expect("one part at least");
        let last = |time: fn(&Part) -> Instant| parts.iter().map(time).max().expect("one part at least");
        let whole = (last(|part| part.ended) - first(|part| part.began)).as_secs_f64();
        let together = first(|part| part.ended).saturating_duration_since(last(|part| part.began)).as_secs_f64();
        let undisturbed = !parts.iter().any(|part| part.preempted);
        let clean = undisturbed && together >= OVERLAP * whole && LENGTH.contains(&whole);
        (all as f64 / whole, whole, clean)
    }
}
