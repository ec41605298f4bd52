//! The locks under the checker of this crate: every execution that RC11 allows, without a bound on preemptions.
//!
//! The models are those of loom over threads that all begin at once. Here stores are seen in every order that coherence
//! allows, two threads may spin on one word, and a thread that waits for what no longer comes is found as such.

mod subject;
mod twins;

use std::{rc::Rc, time::Instant};

use self::{
    subject::{Lock, report},
    twins::{queued as queue, ticket as tickets, ttas as flag},
};
use super::{QueuedLock, TicketLock, TtasLock, queued, ticket, ttas};
use crate::{
    AtomicBool, AtomicU64, Ordering,
    explored::{PlainU64, Program, explore},
    wait_until,
};

/// The checker's report of a race.
const RACE: &str = "data race";

/// A lock that knows who came first. Each question is one load, so that it can be waited for.
trait Fair: Lock {
    /// Whether somebody took it.
    fn is_taken(&self) -> bool;
    /// Whether somebody waits for the holder.
    fn is_waited_for(&self) -> bool;
}

impl<O: queued::QueuedOrder + 'static> Fair for QueuedLock<O> {
    fn is_taken(&self) -> bool {
        self.is_held()
    }
    fn is_waited_for(&self) -> bool {
        self.tail() != 0
    }
}

impl<O: ticket::TicketOrder + 'static> Fair for TicketLock<O> {
    fn is_taken(&self) -> bool {
        self.drawn() > 0
    }
    fn is_waited_for(&self) -> bool {
        self.drawn() > 1
    }
}

struct State<L> {
    lock: L,
    /// What the lock protects.
    value: PlainU64,
    joined: AtomicBool,
    turn: AtomicU64,
}

/// A model over a lock: threads that begin together, and what must be true in the end.
fn model<L: Lock, const N: usize>(threads: [fn(&State<L>); N], at_end: fn(&State<L>)) -> Program {
    let state = Rc::new(State {
        lock: L::free(),
        value: PlainU64::new(0),
        joined: AtomicBool::new(false),
        turn: AtomicU64::new(0),
    });
    let bind = |step: fn(&State<L>)| -> Box<dyn Fn()> {
        let state = Rc::clone(&state);
        Box::new(move || step(&state))
    };
    Program::new(threads.map(bind).into(), bind(at_end))
}

fn add<L: Lock>(state: &State<L>) {
    let (grant, _) = state.lock.acquire();
    state.value.set(state.value.get() + 1);
    state.lock.release(grant);
}

fn add_twice<L: Lock>(state: &State<L>) {
    add(state);
    add(state);
}

fn try_to_add<L: Lock>(state: &State<L>) {
    if let Some(grant) = state.lock.try_acquire() {
        state.value.set(state.value.get() + 1);
        state.turn.store(1, Ordering::Relaxed);
        state.lock.release(grant);
    }
}

/// The lock is free, and no addition was lost.
fn counts<L: Lock, const N: u64>(state: &State<L>) {
    assert_eq!(state.value.get(), N);
    assert!(!state.lock.is_held());
}

fn counts_what_was_got<L: Lock>(state: &State<L>) {
    assert_eq!(state.value.get(), 1 + state.turn.load(Ordering::Relaxed));
}

fn two<L: Lock>() -> Program {
    model::<L, 2>([add, add], counts::<L, 2>)
}

fn three<L: Lock>() -> Program {
    model::<L, 3>([add, add, add], counts::<L, 3>)
}

fn again<L: Lock>() -> Program {
    model::<L, 2>([add_twice, add_twice], counts::<L, 4>)
}

fn trying<L: Lock>() -> Program {
    model::<L, 2>([add, try_to_add], counts_what_was_got)
}

/// One holds until another waits; a third asks when it was told that, and comes last. (Told by Release and Acquire: who
/// merely happens to come later may have asked at the same time.)
fn in_order<L: Fair>() -> Program {
    let holder = |state: &State<L>| {
        let (grant, _) = state.lock.acquire();
        wait_until(|| state.lock.is_waited_for());
        state.joined.store(true, Ordering::Release);
        state.lock.release(grant);
    };
    let first = |state: &State<L>| {
        wait_until(|| state.lock.is_taken());
        let (grant, _) = state.lock.acquire();
        assert_eq!(state.turn.load(Ordering::Relaxed), 0, "overtaken");
        state.turn.store(1, Ordering::Relaxed);
        state.lock.release(grant);
    };
    let second = |state: &State<L>| {
        wait_until(|| state.joined.load(Ordering::Acquire));
        let (grant, _) = state.lock.acquire();
        assert_eq!(state.turn.load(Ordering::Relaxed), 1, "overtaken");
        state.lock.release(grant);
    };
    model::<L, 3>([holder, first, second], |state| assert!(!state.lock.is_held()))
}

/// The model holds in every execution.
#[track_caller]
fn holds(name: &str, model: fn() -> Program) {
    let start = Instant::now();
    let found = explore(model);
    assert!(found.failure.is_none(), "{name} fails: {}", found.failure.map(|one| one.to_string()).unwrap_or_default());
    report(name, "holds", &format!("holds in all {} executions", found.executions), found.executions, start);
}

/// The twin fails, with `why` in its message.
#[track_caller]
fn breaks(name: &str, why: &str, model: fn() -> Program) {
    let start = Instant::now();
    let found = explore(model);
    let failure = found.failure.expect("the weakened twin was not caught").to_string();
    assert!(failure.contains(why), "{name} fails for another reason: {failure}");
    let number = found.executions + 1;
    report(name, "caught", &format!("caught in execution {number}"), number, start);
}

type Queued<O = queued::Handover> = QueuedLock<O>;
type Ticket<O = ticket::Handover> = TicketLock<O>;
type Ttas<O = ttas::Handover> = TtasLock<O>;

#[test]
fn the_queued_lock_holds() {
    holds("P9-queued exclusion", two::<Queued>);
    holds("P9-queued waiters", three::<Queued>);
    holds("P9-queued more waiters than nodes", three::<QueuedLock<queued::Handover, 1>>);
    holds("P9-queued try", trying::<Queued>);
}

#[test]
fn the_queued_lock_uses_its_nodes_again() {
    holds("P9-queued nodes again", again::<Queued>);
}

#[test]
fn the_queued_lock_is_first_come_first_served() {
    holds("P9-queued order", in_order::<Queued>);
}

#[test]
fn the_twins_of_the_queued_lock_break() {
    breaks("P9-queued take relaxed", RACE, two::<Queued<queue::TakeRelaxed>>);
    breaks("P9-queued release relaxed", RACE, two::<Queued<queue::ReleaseRelaxed>>);
    breaks("P9-queued try take relaxed", RACE, trying::<Queued<queue::TakeRelaxed>>);
    breaks("P9-queued enqueue without release", RACE, three::<Queued<queue::EnqueueAcquire>>);
    breaks("P9-queued enqueue without acquire", RACE, three::<Queued<queue::EnqueueRelease>>);
    breaks("P9-queued link relaxed", RACE, three::<Queued<queue::LinkRelaxed>>);
    breaks("P9-queued follow relaxed", RACE, three::<Queued<queue::FollowRelaxed>>);
    breaks("P9-queued take node relaxed", RACE, three::<Queued<queue::TakeNodeRelaxed>>);
    breaks("P9-queued give node relaxed", RACE, three::<Queued<queue::GiveNodeRelaxed>>);
}

#[test]
fn the_ticket_lock_holds() {
    holds("P9-ticket exclusion", two::<Ticket>);
    holds("P9-ticket waiters", three::<Ticket>);
    holds("P9-ticket order", in_order::<Ticket>);
    holds("P9-ticket try", trying::<Ticket>);
}

#[test]
fn the_twins_of_the_ticket_lock_break() {
    breaks("P9-ticket observe relaxed", RACE, two::<Ticket<tickets::ObserveRelaxed>>);
    breaks("P9-ticket serve relaxed", RACE, two::<Ticket<tickets::ServeRelaxed>>);
    breaks("P9-ticket try observe relaxed", RACE, trying::<Ticket<tickets::ObserveRelaxed>>);
}

#[test]
fn the_test_and_test_and_set_lock_holds() {
    holds("P9-ttas exclusion", two::<Ttas>);
    holds("P9-ttas waiters", three::<Ttas>);
    holds("P9-ttas try", trying::<Ttas>);
}

#[test]
fn the_twins_of_the_test_and_test_and_set_lock_break() {
    breaks("P9-ttas set relaxed", RACE, two::<Ttas<flag::SetRelaxed>>);
    breaks("P9-ttas clear relaxed", RACE, two::<Ttas<flag::ClearRelaxed>>);
    breaks("P9-ttas try set relaxed", RACE, trying::<Ttas<flag::SetRelaxed>>);
}
