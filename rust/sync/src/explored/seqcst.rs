//! RC11's `psc` where there are `SeqCst` accesses: the general form. (Fences alone have a shorter one, in `consistency`.)
//!
//! ```text
//! scb      = sb | sb_elsewhere; hb; sb_elsewhere | hb at one word | mo | fr
//! psc_base = ([access] | [fence]; hb?); scb; ([access] | hb?; [fence])
//! psc_F    = [fence]; (hb | hb; eco; hb); [fence]
//! ```
//!
//! The project has no such access, but for twins that show that it would not help.

use super::{
    clock::EventId,
    event::{Action, Event, Half},
    graph::Graph,
};
use crate::Ordering;

/// A set of events by their numbers.
#[derive(Clone, Debug)]
struct Set(Vec<u64>);

impl Set {
    fn of(count: usize, members: impl Iterator<Item = usize>) -> Self {
        let mut set = Self(vec![0; count.div_ceil(64)]);
        members.for_each(|one| set.0[one / 64] |= 1 << (one % 64));
        set
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(one, other)| one & other != 0)
    }

    fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(one, other)| *one |= other);
    }
}

pub(super) fn is_fence(event: &Event) -> bool {
    matches!(event.action, Action::Fence { order: Ordering::SeqCst })
}

/// Whether an event is an access of order `SeqCst`, as it turned out.
pub(super) fn is_access(event: &Event) -> bool {
    match event.action {
        Action::Read { half: Half::If { otherwise, .. }, .. } if !event.writes() => otherwise == Ordering::SeqCst,
        Action::Read { order, .. } | Action::Write { order, .. } => order == Some(Ordering::SeqCst),
        Action::Fence { .. } => false,
    }
}

struct Relations<'a> {
    events: Vec<(EventId, &'a Event)>,
    /// The place of what each wrote or returned.
    places: Vec<Option<usize>>,
}

impl<'a> Relations<'a> {
    fn of(graph: &'a Graph) -> Self {
        let events: Vec<_> = graph.events().collect();
        let places = events.iter().map(|&(id, _)| graph.place(id)).collect();
        Self { events, places }
    }

    fn count(&self) -> usize {
        self.events.len()
    }

    fn hb(&self, one: usize, other: usize) -> bool {
        self.events[other].1.hb.contains(self.events[one].0)
    }

    fn sb(&self, one: usize, other: usize) -> bool {
        let (one, other) = (self.events[one].0, self.events[other].0);
        one.thread == other.thread && one.index < other.index
    }

    fn same_word(&self, one: usize, other: usize) -> bool {
        let word = self.events[one].1.action.word();
        word.is_some() && word == self.events[other].1.action.word()
    }

    fn is_write(&self, one: usize) -> bool {
        matches!(self.events[one].1.action, Action::Write { .. })
    }

    fn mo_or_fr(&self, one: usize, other: usize) -> bool {
        self.same_word(one, other)
            && self.is_write(other)
            && self.places[one] < self.places[other]
            && self.places[one].is_some()
    }

    fn eco(&self, one: usize, other: usize) -> bool {
        let rank = |event: usize| self.places[event].map(|place| 2 * place + usize::from(!self.is_write(event)));
        self.same_word(one, other) && rank(one).is_some() && rank(one) < rank(other)
    }

    /// For each event the set of those that `scb` leads to.
    fn scb(&self) -> Vec<Set> {
        let all = 0..self.count();
        let after: Vec<_> =
            all.clone().map(|one| Set::of(self.count(), all.clone().filter(|&other| self.hb(one, other)))).collect();
        let elsewhere = |one: usize, other: usize| self.sb(one, other) && !self.same_word(one, other);
        let before: Vec<_> =
            all.clone().map(|one| Set::of(self.count(), all.clone().filter(|&other| elsewhere(other, one)))).collect();
        let leads = |one: usize| {
            let mut by_hb = Set::of(self.count(), 0..0);
            all.clone().filter(|&middle| elsewhere(one, middle)).for_each(|middle| by_hb.join(&after[middle]));
            let direct = |other: usize| {
                self.sb(one, other) || self.same_word(one, other) && self.hb(one, other) || self.mo_or_fr(one, other)
            };
            Set::of(self.count(), all.clone().filter(|&other| direct(other) || by_hb.meets(&before[other])))
        };
        all.clone().map(leads).collect()
    }

    /// The predecessors of each `SeqCst` event among them, by `psc_base` and `psc_F`.
    fn predecessors(&self) -> Vec<Vec<usize>> {
        let all = 0..self.count();
        let scb = self.scb();
        let strong: Vec<_> =
            all.clone().filter(|&one| is_fence(self.events[one].1) || is_access(self.events[one].1)).collect();
        let fence = |one: usize| is_fence(self.events[one].1);
        let starts = |one: usize| all.clone().filter(move |&other| one == other || fence(one) && self.hb(one, other));
        let leads = |from: usize, to: usize| {
            let ends = Set::of(self.count(), all.clone().filter(|&one| one == to || fence(to) && self.hb(one, to)));
            let base = || starts(from).any(|one| scb[one].meets(&ends));
            let by_eco = || {
                let last = |one: usize| all.clone().any(|other| self.eco(one, other) && self.hb(other, to));
                all.clone().any(|one| self.hb(from, one) && last(one))
            };
            from != to && (base() || fence(from) && fence(to) && (self.hb(from, to) || by_eco()))
                || from == to && base()
        };
        let of = |&to: &usize| (0..strong.len()).filter(|&from| leads(strong[from], to)).collect();
        strong.iter().map(of).collect()
    }
}

/// Whether the order of the `SeqCst` events of a graph has no cycle.
pub(super) fn psc_is_acyclic(graph: &Graph) -> bool {
    let predecessors = Relations::of(graph).predecessors();
    // Take away what nothing leads to, until nothing is left or only cycles are.
    let mut left = vec![true; predecessors.len()];
    loop {
        let is_free = |one: &usize| left[*one] && !predecessors[*one].iter().any(|&before| left[before]);
        let Some(free) = (0..left.len()).find(is_free) else { return !left.contains(&true) };
        left[free] = false;
    }
}
