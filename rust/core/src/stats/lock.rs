//! Use of the `mmu_lock`: how often, for what, for how long, and by whom just now.

use core::time::Duration;

use super::Nanos;

/// Why the `mmu_lock` was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum LockReason {
    /// Allocating a root.
    Load,
    /// Releasing roots.
    Free,
    /// Syncing a root's children.
    Sync,
    /// A page fault.
    Fault,
    /// An emulated guest write to a table.
    PteWrite,
    /// INVLPG, or the invalidation that goes with an injected fault.
    Invlpg,
    /// The host zaps a frame's shadow pages.
    Zap,
    /// The host writes guest memory.
    Host,
    /// An audit.
    Audit,
}

impl LockReason {
    /// How many reasons there are.
    pub const COUNT: usize = 9;
    /// Their names, in the order of the discriminants.
    pub const NAMES: [&'static str; Self::COUNT] =
        ["load", "free", "sync", "fault", "pte_write", "invlpg", "zap", "host", "audit"];
    /// All of them, in the order of the discriminants.
    pub const ALL: [LockReason; Self::COUNT] = [
        LockReason::Load,
        LockReason::Free,
        LockReason::Sync,
        LockReason::Fault,
        LockReason::PteWrite,
        LockReason::Invlpg,
        LockReason::Zap,
        LockReason::Host,
        LockReason::Audit,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Use of the `mmu_lock` by one vCPU, or by all.
#[derive(Clone, Debug, Default)]
pub struct LockStats {
    /// Acquisitions, shared ones too, indexed by [`LockReason`].
    pub acquisitions: [u64; LockReason::COUNT],
    /// Those that were shared (docs/machine.md, 12).
    pub shared: u64,
    /// Those that had to wait.
    pub contended: u64,
    /// Waits and holds, where [`VmConfig::lock_times`](crate::VmConfig::lock_times) asked for them.
    pub times: Option<Box<LockTimes>>,
}

/// Durations of waits for and holds of the `mmu_lock`.
#[derive(Clone, Debug, Default)]
pub struct LockTimes {
    /// From asking to having.
    pub wait: Nanos,
    /// From having to releasing.
    pub hold: Nanos,
    /// Who waited longest.
    pub longest_wait: Option<Longest>,
    /// Who held it longest.
    pub longest_hold: Option<Longest>,
}

/// The longest wait or hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Longest {
    /// How long, in nanoseconds.
    pub nanos: u64,
    /// Which vCPU; `None` for the host.
    pub vcpu: Option<usize>,
    /// What for.
    pub reason: LockReason,
}

impl Longest {
    /// Puts `other` in the place of `longest` if it is longer.
    fn update(longest: &mut Option<Longest>, other: Longest) {
        if longest.is_none_or(|one| one.nanos < other.nanos) {
            *longest = Some(other);
        }
    }
}

impl LockTimes {
    /// Records that a vCPU waited.
    pub(crate) fn waited(&mut self, time: Duration, vcpu: Option<usize>, reason: LockReason) {
        let nanos = time.as_nanos() as u64;
        self.wait.record(nanos);
        Longest::update(&mut self.longest_wait, Longest { nanos, vcpu, reason });
    }

    /// Records that a vCPU held it.
    pub(crate) fn held(&mut self, time: Duration, vcpu: Option<usize>, reason: LockReason) {
        let nanos = time.as_nanos() as u64;
        self.hold.record(nanos);
        Longest::update(&mut self.longest_hold, Longest { nanos, vcpu, reason });
    }

    fn add(&mut self, other: &LockTimes) {
        self.wait.add(&other.wait);
        self.hold.add(&other.hold);
        for (mine, theirs) in
            [(&mut self.longest_wait, other.longest_wait), (&mut self.longest_hold, other.longest_hold)]
        {
            if let Some(theirs) = theirs {
                Longest::update(mine, theirs);
            }
        }
    }
}

impl LockStats {
    /// Statistics with or without durations.
    pub fn new(times: bool) -> Self {
        Self { times: times.then(Box::default), ..Self::default() }
    }

    /// Acquisitions over all reasons.
    pub fn total(&self) -> u64 {
        self.acquisitions.iter().sum()
    }

    /// Adds another vCPU's.
    pub fn add(&mut self, other: &LockStats) {
        for (mine, theirs) in self.acquisitions.iter_mut().zip(other.acquisitions) {
            *mine += theirs;
        }
        self.shared += other.shared;
        self.contended += other.contended;
        if let Some(theirs) = &other.times {
            self.times.get_or_insert_default().add(theirs);
        }
    }
}

/// What somebody has to do with the `mmu_lock` just now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockPhase {
    /// Asked for it and does not have it.
    Waiting,
    /// Has it.
    Holding,
    /// Has it together with others.
    Sharing,
}

impl LockPhase {
    /// All of them.
    pub const ALL: [LockPhase; 3] = [LockPhase::Waiting, LockPhase::Holding, LockPhase::Sharing];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            LockPhase::Waiting => "waiting",
            LockPhase::Holding => "holding",
            LockPhase::Sharing => "sharing",
        }
    }
}

/// One who waits for or holds the `mmu_lock`, as seen from another thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockUser {
    /// Which vCPU; `None` for the host.
    pub vcpu: Option<usize>,
    /// Waiting or holding.
    pub phase: LockPhase,
    /// What for.
    pub reason: LockReason,
    /// For how long, in nanoseconds.
    pub nanos: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_keeps_the_longest_of_all() {
        let (mut sum, mut other) = (LockTimes::default(), LockTimes::default());
        sum.waited(Duration::from_nanos(5), Some(0), LockReason::Fault);
        other.waited(Duration::from_nanos(9), Some(1), LockReason::Sync);
        other.waited(Duration::from_nanos(7), Some(1), LockReason::Load);
        other.held(Duration::from_nanos(3), None, LockReason::Host);
        sum.add(&other);
        assert_eq!(sum.longest_wait, Some(Longest { nanos: 9, vcpu: Some(1), reason: LockReason::Sync }));
        assert_eq!(sum.longest_hold, Some(Longest { nanos: 3, vcpu: None, reason: LockReason::Host }));
        assert_eq!(sum.wait.quantiles().total, 21);
    }
}
