//! What the guest's table words held, and what a vCPU must know of it: the memory of the oracle.
//!
//! Each word has one vCPU that edits it. An edit is *begun* (its value is in the word's log), carried out by an operation
//! of the machine, and *done* (the editor's count of edits says so). Whoever has read an editor's count before it
//! invalidates a page must afterwards not meet older values there: it has been told, as by a guest's own signal. Between
//! begun and done both values are right.
//!
//! The oracle only loads and stores with Acquire and Release, as the guest's own signals do: no read-modify-write and no
//! fence of it can hide a missing fence of the MMU.

use core::array;

use smallvec::SmallVec;

use crate::{
    paging::{PTE_ACCESSED, PTE_DIRTY},
    sync::{AtomicU64, Ordering},
};

/// Versions of a word that are remembered.
const KEPT: u64 = 64;
/// A and D are the hardware's: no translation depends on them, and the oracle compares without.
pub(super) const ACCESSED_DIRTY: u64 = PTE_ACCESSED | PTE_DIRTY;
/// Values of one word, seldom more than one.
pub(super) type Values = SmallVec<[u64; 4]>;

/// Who made an edit, whether by the host, and which of that vCPU's edits it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp(u64);

impl Stamp {
    const HOST: u64 = 1 << 47;

    /// Edit `number` of `editor`. `host`: made from the hypervisor's side, which drops every stale entry at once.
    pub(super) fn new(editor: usize, number: u64, host: bool) -> Self {
        Self((editor as u64) << 48 | if host { Self::HOST } else { 0 } | number)
    }

    fn is_done(self, known: &Known) -> bool {
        known.edits[(self.0 >> 48) as usize] >= self.0 & (Self::HOST - 1)
    }

    fn is_host(self) -> bool {
        self.0 & Self::HOST != 0
    }
}

/// How many edits of each vCPU are known to be done.
#[derive(Clone, Debug)]
pub(super) struct Known {
    edits: Box<[u64]>,
    /// Machine operations begun and ended by the other vCPUs, summed.
    pub(super) steps_of_others: u64,
}

/// One vCPU's counts, on a line of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Tick {
    edits: AtomicU64,
    steps: AtomicU64,
}

/// The counts of all vCPUs.
#[derive(Debug)]
pub(super) struct Clock(Box<[Tick]>);

impl Clock {
    pub(super) fn new(vcpus: usize) -> Self {
        Self((0..vcpus).map(|_| Tick::default()).collect())
    }

    /// Nothing is known yet but the beginning.
    pub(super) fn nothing(&self) -> Known {
        Known { edits: vec![0; self.0.len()].into(), steps_of_others: 0 }
    }

    /// Edits of `vcpu` up to `number` are done.
    pub(super) fn done(&self, vcpu: usize, number: u64) {
        // ORDERING(stress-oracle): Release: a signal after the edits, as the guest's own.
        self.0[vcpu].edits.store(number, Ordering::Release);
    }

    /// `vcpu` has begun or ended an operation of this kind: the `count`-th beginning or end.
    pub(super) fn step(&self, vcpu: usize, count: u64, kind: u8) {
        // ORDERING(stress-oracle): Relaxed: a figure of progress, for the watchdog and the count of retries.
        self.0[vcpu].steps.store(count << 8 | u64::from(kind), Ordering::Relaxed);
    }

    /// Begun and ended operations of a vCPU, and the kind of the last.
    pub(super) fn steps(&self, vcpu: usize) -> (u64, u8) {
        // ORDERING(stress-oracle): Relaxed: as above.
        let word = self.0[vcpu].steps.load(Ordering::Relaxed);
        (word >> 8, word as u8)
    }

    /// Takes note of all that is done now.
    pub(super) fn learn(&self, own: usize, known: &mut Known) {
        known.steps_of_others = 0;
        for (vcpu, (tick, edits)) in self.0.iter().zip(&mut known.edits).enumerate() {
            // ORDERING(stress-oracle): Acquire: what this vCPU does next comes after the edits it knows of.
            *edits = tick.edits.load(Ordering::Acquire);
            if vcpu != own {
                // ORDERING(stress-oracle): Relaxed: a figure of progress.
                known.steps_of_others += tick.steps.load(Ordering::Relaxed) >> 8;
            }
        }
    }

    /// The operations of the other vCPUs, as [`learn`](Self::learn) counts them.
    pub(super) fn steps_of_others(&self, own: usize) -> u64 {
        (0..self.0.len()).filter(|&vcpu| vcpu != own).map(|vcpu| self.steps(vcpu).0).sum()
    }
}

/// More versions came than are remembered: the access cannot be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Forgotten;

#[derive(Debug)]
struct Version {
    value: AtomicU64,
    stamp: AtomicU64,
}

/// The last values of one table word.
#[derive(Debug)]
pub(super) struct WordLog {
    /// Number of the newest version.
    begun: AtomicU64,
    versions: [Version; KEPT as usize],
}

impl WordLog {
    pub(super) fn new(value: u64) -> Self {
        let stamp = Stamp::new(0, 0, false).0;
        Self {
            begun: AtomicU64::new(0),
            versions: array::from_fn(|_| Version { value: AtomicU64::new(value), stamp: AtomicU64::new(stamp) }),
        }
    }

    fn version(&self, number: u64) -> &Version {
        &self.versions[(number % KEPT) as usize]
    }

    /// The value that the word holds, or is about to. For its editor, or at rest.
    pub(super) fn newest(&self) -> u64 {
        // ORDERING(stress-oracle): Acquire: pairs with `begin`.
        let newest = self.begun.load(Ordering::Acquire);
        // ORDERING(stress-oracle): Acquire: as above.
        self.version(newest).value.load(Ordering::Acquire)
    }

    /// The editor is about to store `value`. Nothing is judged wrong for meeting it from now on.
    pub(super) fn begin(&self, value: u64, stamp: Stamp) {
        // ORDERING(stress-oracle): Relaxed: the editor is the only writer.
        let next = self.begun.load(Ordering::Relaxed) + 1;
        let version = self.version(next);
        // ORDERING(stress-oracle): Release: who reads it finds `begun` at most one round behind.
        version.value.store(value, Ordering::Release);
        // ORDERING(stress-oracle): Release: as above.
        version.stamp.store(stamp.0, Ordering::Release);
        // ORDERING(stress-oracle): Release: before the store to the table word itself.
        self.begun.store(next, Ordering::Release);
    }

    /// Adds the values that an access may use: the newest that `since` knows of, and all that came after it. `start` is
    /// what was known when the access began: no value older than a host's edit done by then is left.
    pub(super) fn values(&self, since: &Known, start: &Known, out: &mut Values) -> Result<(), Forgotten> {
        // ORDERING(stress-oracle): Acquire: after the access; pairs with `begin`.
        let newest = self.begun.load(Ordering::Acquire);
        let mut number = newest;
        loop {
            let version = self.version(number);
            // ORDERING(stress-oracle): Acquire: the check below comes after these.
            let value = version.value.load(Ordering::Acquire) & !ACCESSED_DIRTY;
            // ORDERING(stress-oracle): Acquire: as above.
            let stamp = Stamp(version.stamp.load(Ordering::Acquire));
            if !out.contains(&value) {
                out.push(value);
            }
            if number == 0 || stamp.is_done(since) || (stamp.is_host() && stamp.is_done(start)) {
                break;
            }
            if newest - number >= KEPT - 2 {
                return Err(Forgotten);
            }
            number -= 1;
        }
        // A version read above is overwritten only after `begun` has come within one of a whole round.
        // ORDERING(stress-oracle): Acquire: as above.
        let now = self.begun.load(Ordering::Acquire);
        if now - number >= KEPT - 1 { Err(Forgotten) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(log: &WordLog, since: &Known, start: &Known) -> Result<Vec<u64>, Forgotten> {
        let mut out = Values::new();
        log.values(since, start, &mut out).map(|()| out.to_vec())
    }

    #[test]
    fn d5_an_edit_is_optional_until_done_and_the_old_value_is_wrong_once_known() {
        let (clock, log) = (Clock::new(2), WordLog::new(0x1000));
        let (mut since, mut start) = (clock.nothing(), clock.nothing());
        log.begin(0x2000, Stamp::new(1, 1, false));
        clock.learn(0, &mut since);
        assert_eq!(values(&log, &since, &start), Ok(vec![0x2000, 0x1000]));
        clock.done(1, 1);
        clock.learn(0, &mut start);
        assert_eq!(values(&log, &since, &start), Ok(vec![0x2000, 0x1000]), "done, and not yet known at the flush");
        assert_eq!(values(&log, &start, &start), Ok(vec![0x2000]), "known at the flush");
    }

    #[test]
    fn an_edit_of_the_host_leaves_no_older_value() {
        let (clock, log) = (Clock::new(1), WordLog::new(0x1000));
        let (since, mut start) = (clock.nothing(), clock.nothing());
        log.begin(0x2000, Stamp::new(0, 1, true));
        assert_eq!(values(&log, &since, &start), Ok(vec![0x2000, 0x1000]));
        clock.done(0, 1);
        clock.learn(0, &mut start);
        assert_eq!(values(&log, &since, &start), Ok(vec![0x2000]));
    }

    #[test]
    fn accessed_and_dirty_do_not_make_another_value() {
        let (clock, log) = (Clock::new(1), WordLog::new(0x1003));
        let known = clock.nothing();
        log.begin(0x1003 | ACCESSED_DIRTY, Stamp::new(0, 1, false));
        assert_eq!(values(&log, &known, &known), Ok(vec![0x1003]));
    }

    #[test]
    fn more_versions_than_are_kept_are_told_and_not_guessed() {
        let (clock, log) = (Clock::new(1), WordLog::new(0));
        let since = clock.nothing();
        for number in 1..KEPT * 3 {
            log.begin(number << 12, Stamp::new(0, number, false));
            assert_eq!(values(&log, &since, &since).is_ok(), number <= KEPT - 2, "{number}");
        }
    }
}
