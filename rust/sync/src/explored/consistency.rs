//! RC11, the C11 memory model as repaired by Lahav, Vafeiadis, Kang, Hur and Dreyer (2017), which Rust follows.
//!
//! * Coherence: happens-before and what was read and written agree at each word.
//! * Atomicity: nothing comes between the two halves of a read-modify-write (`Graph::is_locked`).
//! * SC: the partial order `psc` of the `SeqCst` fences (and accesses: `seqcst`) has no cycle.
//! * No thin air: the graphs have no cycle of `sb` and `rf` by their making.
//!
//! And, beside what may happen, what must not: two accesses of which one is not atomic and one writes, that are not
//! ordered by happens-before, are a data race.

use super::{
    Rule, Rules,
    clock::{Clock, EventId},
    event::{Action, Event, Word},
    graph::Graph,
    seqcst::{self, is_access, is_fence},
};

/// More `SeqCst` fences than this in one execution are refused.
const FENCES: usize = 64;

/// The oldest place that an access may still see: nothing in `before` wrote or returned a later one (the rules
/// `CoRR`, `CoWR`, `CoRW` and `CoWW`).
pub(super) fn floor(graph: &Graph, word: Word, before: &Clock, rules: Rules) -> usize {
    if !rules.hold(Rule::Coherence) {
        return 0;
    }
    let mut floor = 0;
    for (number, thread) in graph.threads.iter().enumerate() {
        for (index, event) in thread.events[..before.count(number).min(thread.events.len())].iter().enumerate() {
            if event.action.word() == Some(word) {
                floor = floor.max(graph.place(EventId::new(number, index)).unwrap_or(0));
            }
        }
    }
    floor
}

/// Whether an event that was just added or changed respects what was seen of its word before it.
fn is_coherent(graph: &Graph, id: EventId, rules: Rules) -> bool {
    let event = graph.event(id);
    let (Some(word), Some(place)) = (event.action.word(), graph.place(id)) else { return true };
    floor(graph, word, &event.hb, rules) <= place
}

/// Whether RC11 allows the graph after the events of `changed`, which nothing follows, were added or changed.
pub(super) fn allows(graph: &Graph, changed: &[EventId], rules: Rules) -> bool {
    if !changed.iter().all(|&id| is_coherent(graph, id, rules)) {
        return false;
    }
    // Nothing leads from the latest event of a word to another.
    let is_latest = |&id: &EventId| match (graph.event(id).action.word(), graph.place(id)) {
        (Some(word), Some(place)) => place == graph.latest(word),
        _ => true,
    };
    !rules.hold(Rule::ScFences) || changed.iter().all(is_latest) || psc_is_acyclic(graph)
}

/// Between fences `psc` is `hb` and `hb; eco; hb`. One event leads to another by `eco` (`rf`, `mo`, `fr` and all they
/// compose to) exactly if its rank at the word is lower: a write at place `p` has rank `2p`, its readers have `2p + 1`.
fn psc_is_acyclic(graph: &Graph) -> bool {
    if graph.events().any(|(_, event)| is_access(event)) {
        return seqcst::psc_is_acyclic(graph);
    }
    let fences: Vec<(EventId, &Event)> = graph.events().filter(|(_, event)| is_fence(event)).collect();
    if fences.len() < 2 {
        return true;
    }
    assert!(fences.len() <= FENCES, "an execution has more than {FENCES} SeqCst fences");
    // For each fence and word: the lowest rank after it, the highest before it.
    let words = graph.words();
    let mut after = vec![usize::MAX; fences.len() * words];
    let mut before = vec![0; fences.len() * words];
    for (id, event) in graph.events() {
        let (Some(word), Some(place)) = (event.action.word(), graph.place(id)) else { continue };
        let rank = 2 * place + usize::from(matches!(event.action, Action::Read { .. }));
        for (number, (fence, at_fence)) in fences.iter().enumerate() {
            let cell = number * words + word as usize;
            if event.hb.contains(*fence) {
                after[cell] = after[cell].min(rank);
            } else if at_fence.hb.contains(id) {
                before[cell] = before[cell].max(rank);
            }
        }
    }
    let mut predecessors = vec![0_u64; fences.len()];
    for (goal, (_, event)) in fences.iter().enumerate() {
        for (start, (fence, _)) in fences.iter().enumerate() {
            let (low, high) = (&after[start * words..][..words], &before[goal * words..][..words]);
            let by_words = || low.iter().zip(high).any(|(low, high)| low < high);
            if event.hb.contains(*fence) || by_words() {
                predecessors[goal] |= 1 << start;
            }
        }
    }
    // Take away what nothing leads to, until nothing is left or only cycles are.
    let mut left = u64::MAX >> (FENCES - fences.len());
    loop {
        let free = (0..fences.len()).filter(|&one| left >> one & 1 == 1 && predecessors[one] & left == 0);
        let gone = free.fold(0, |gone, one| gone | 1 << one);
        if gone == 0 {
            return left == 0;
        }
        left &= !gone;
    }
}

/// What races with an event that was just added.
pub(super) fn race(graph: &Graph, id: EventId) -> Option<EventId> {
    let event = graph.event(id);
    let word = event.action.word()?;
    let (writes, plain) = access(event);
    graph.events().map(|(other, _)| other).find(|&other| {
        let one = graph.event(other);
        let (also_writes, also_plain) = access(one);
        one.action.word() == Some(word)
            && other.thread != id.thread
            && (writes || also_writes)
            && (plain || also_plain)
            && !event.hb.contains(other)
            && !one.hb.contains(id)
    })
}

fn access(event: &Event) -> (bool, bool) {
    match event.action {
        Action::Read { order, .. } => (false, order.is_none()),
        Action::Write { order, .. } => (true, order.is_none()),
        Action::Fence { .. } => (false, false),
    }
}
