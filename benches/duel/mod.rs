//! Two machines, a thread for each vCPU, clean samples: who does more switches a second.

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
use shadow_mmu::{Cpu, Vm};
use shadow_mmu_sync::{AtomicU64, Ordering, spin_loop};

use crate::support::{
    guest::{Kpti, Route, enter, switch},
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
/// What a sample with more threads than processors aims at: some slices of the scheduler.
const CROWDED_AIM: f64 = 20e-3;

/// The processors, asked for once: a pinned thread, and the threads it starts, see only the one that they are pinned to.
pub fn cores() -> &'static [CoreId] {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// Pins the calling thread to a processor; a machine that refuses is left alone, and its samples are unclean.
pub fn pin(index: usize) {
    if let Some(&core) = cores().get(index % cores().len().max(1)) {
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
    /// Threads.
    pub vcpus: usize,
    /// Whether the guest is entered after each write.
    pub entering: bool,
    /// Steps of guest work after that.
    pub work: u32,
}

impl Load {
    /// More threads than processors: no sample can be clean, and every one counts.
    fn crowded(self) -> bool {
        self.vcpus > cores().len()
    }
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

/// A job for another thread than the first.
struct Job {
    machine: usize,
    load: Load,
    switches: u64,
    gate: u64,
}

/// Where threads meet: the count of arrivals.
struct Gate(AtomicU64);

impl Gate {
    /// Waits until `count` threads have come since the start.
    fn meet(&self, count: u64, crowded: bool) {
        // ORDERING: a bench's own rendezvous; what it hands over goes through the channels.
        self.0.fetch_add(1, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) < count {
            // With a processor for each it never yields: a thread that gave its own away would come late to the start.
            if crowded { thread::yield_now() } else { spin_loop() }
        }
    }
}

/// Does `switches` switches: whole rounds of the route, from its last root back to it.
fn drive(cpu: &mut Cpu<'_>, route: &Route, load: Load, switches: u64) -> Part {
    let before = preemptions();
    let roots = route.roots.as_slice();
    let mut at = 0;
    let began = Instant::now();
    for _ in 0..switches {
        switch(cpu, black_box(roots[at]));
        if load.entering {
            enter(cpu);
        }
        work(load.work);
        at = if at + 1 == roots.len() { 0 } else { at + 1 };
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

    /// Checks each machine against what its side must cost.
    pub fn assert_cost(&self, cost: [Cost; 2]) {
        for (machine, cost) in cost.into_iter().enumerate() {
            let (asked, lockless, taken) = (self.asked[machine], self.lockless[machine], self.acquisitions[machine]);
            match cost {
                Cost::LockFree => assert_eq!((taken, lockless), (0, asked), "machine {machine}, fast: {self:?}"),
                Cost::Locked => assert!(taken >= asked && lockless == 0, "machine {machine}, locked: {self:?}"),
            }
        }
    }
}

/// What every switch of a side must cost.
#[derive(Clone, Copy, Debug)]
pub enum Cost {
    /// No acquisition of the `mmu_lock`.
    LockFree,
    /// One or more.
    Locked,
}

/// Two machines, and who drives them.
pub struct Arena {
    machines: [(Vm, Vec<Route>); 2],
    vcpus: usize,
}

impl Arena {
    /// Machines of this make, with as many vCPUs and processes each.
    pub fn new(machines: [Kpti; 2]) -> Self {
        Self { machines: machines.map(Kpti::build), vcpus: machines[0].vcpus }
    }

    /// Runs the contests and checks both machines after them.
    pub fn fight(&self, contests: &[Contest]) -> (Vec<Result>, Counts) {
        for (vm, routes) in &self.machines {
            for (index, route) in routes.iter().enumerate() {
                route.warm_up(&mut vm.cpu(index).expect("no thread runs yet"));
            }
        }
        let before = self.counted();
        let (done, parts) = channel();
        let gate = Gate(AtomicU64::new(0));
        let (results, asked) = thread::scope(|scope| {
            let gate = &gate;
            let start = |index| {
                let (job, queue) = channel();
                let done = done.clone();
                scope.spawn(move || self.other(index, &queue, &done, gate));
                job
            };
            // The other threads end when the referee goes, with its ends of the channels.
            let jobs = (1..self.vcpus).map(start).collect();
            let mut referee = Referee { arena: self, cpus: self.cpus(0), jobs, parts, gate, met: 0, asked: [0; 2] };
            let results = contests.iter().map(|contest| referee.contest(contest)).collect();
            (results, referee.asked)
        });
        let after = self.counted();
        let difference = |which: usize| [0, 1].map(|machine| after[machine][which] - before[machine][which]);
        let counts = Counts { asked, lockless: difference(1), acquisitions: difference(2) };
        assert_eq!(difference(0), asked, "switches counted and asked for");
        for (vm, routes) in &self.machines {
            for (index, route) in routes.iter().enumerate() {
                route.check_after(vm, index);
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

    /// Another thread than the first: a vCPU of both machines.
    fn other(&self, index: usize, queue: &Receiver<Job>, done: &Sender<Part>, gate: &Gate) {
        pin(index);
        let mut cpus = self.cpus(index);
        for Job { machine, load, switches, gate: count } in queue {
            gate.meet(count, load.crowded());
            let part = drive(&mut cpus[machine], &self.machines[machine].1[index], load, switches);
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
    jobs: Vec<Sender<Job>>,
    parts: Receiver<Part>,
    gate: &'a Gate,
    met: u64,
    asked: [u64; 2],
}

impl Referee<'_> {
    /// Samples in the order A B B A until both sides have enough clean ones.
    fn contest(&mut self, contest: &Contest) -> Result {
        let mut switches = [0, 1].map(|side| self.rounds(side, 256));
        let mut result = Result::default();
        for side in [0, 1, 1, 0].into_iter().cycle() {
            if result.clean.iter().all(|clean| clean.len() >= CLEAN) || result.tries[side] >= TRIES {
                break;
            }
            result.tries[side] += 1;
            let load = contest[side];
            let (rate, seconds, clean) = self.sample(side, load, switches[side]);
            if clean {
                result.clean[side].push(rate);
            }
            let aim = if load.crowded() { CROWDED_AIM } else { AIM };
            if load.crowded() || !LENGTH.contains(&seconds) {
                // In steps: one preempted sample must not set the length of the next.
                let factor = (aim / seconds).clamp(0.25, 8.0);
                switches[side] = self.rounds(side, (switches[side] as f64 * factor) as u64);
            }
        }
        result
    }

    /// So many switches, or a few more or less: whole rounds, some dozen switches at least.
    fn rounds(&self, machine: usize, switches: u64) -> u64 {
        let round = self.arena.machines[machine].1[0].roots.len() as u64;
        switches.max(64).div_ceil(round) * round
    }

    /// One sample: its rate, its length, and whether it is clean.
    fn sample(&mut self, machine: usize, load: Load, switches: u64) -> (f64, f64, bool) {
        if load.vcpus > 1 {
            self.met += load.vcpus as u64;
            for job in &self.jobs[..load.vcpus - 1] {
                job.send(Job { machine, load, switches, gate: self.met }).expect("the other threads run");
            }
            self.gate.meet(self.met, load.crowded());
        }
        let mut parts = vec![drive(&mut self.cpus[machine], &self.arena.machines[machine].1[0], load, switches)];
        parts.extend((1..load.vcpus).map(|_| self.parts.recv().expect("the other threads run")));
        let all = switches * load.vcpus as u64;
        self.asked[machine] += all;
        let first = |time: fn(&Part) -> Instant| parts.iter().map(time).min().expect("one part at least");
        let last = |time: fn(&Part) -> Instant| parts.iter().map(time).max().expect("one part at least");
        let whole = (last(|part| part.ended) - first(|part| part.began)).as_secs_f64();
        let together = first(|part| part.ended).saturating_duration_since(last(|part| part.began)).as_secs_f64();
        let undisturbed = !parts.iter().any(|part| part.preempted);
        let clean = undisturbed && together >= OVERLAP * whole && LENGTH.contains(&whole);
        (all as f64 / whole, whole, clean || load.crowded())
    }
}
