//! The queued lock: MCS in the shape of the kernel's queued spinlock.
//!
//! Two words, `held` and `tail` (the last waiter, 0 = nobody waits), and a node for each waiter:
//!
//! * lock: if nobody waits, set `held` if it is clear. Else take a node, become the tail, tell the one before (`next`),
//!   and watch the own node (`front`) until that one makes way. The one in front waits for `held`, sets it, and makes
//!   the next one the front;
//! * unlock: clear `held`, Release.
//!
//! First come, first served: who finds a waiter joins the queue, so the one in front is overtaken only by a thread that
//! found the queue empty before, each once at most. Each waiter but the front watches a line of its own, so a release
//! disturbs one waiter only. A lock that nobody waits for costs one exchange, one load and one store. (The kernel has
//! both words in one, and clears `held` by a store of a byte; for atomics of whole words two words are what
//! makes the unlock a store.)
//!
//! # Nodes
//!
//! A pool in the lock, by number: no pointers. With more waiters than [`NODES`] the rest wait for a node, in no order.
//!
//! # Orderings
//!
//! | access | order | why |
//! |---|---|---|
//! | the exchange that sets `held`, the store that clears it | Acquire, Release | the holder sees all that earlier holders did |
//! | the exchange that makes a tail | AcqRel | the next waiter writes into this node: only after its owner cleared it |
//! | store and load of `next` | Release, Acquire | the owner gives the node away only after that write, and the write to the next one's `front` comes after that one cleared it |
//! | store and load of `front` | Relaxed | its reader gives its node away only after it took `held`, which the writer releases later |
//! | taking a node, giving it back | Acquire, Release | the next owner clears it after all that was done to it |
//! | the exchange that empties the queue | Relaxed | says that nobody waits; what is protected is ordered by `held` |

use core::marker::PhantomData;

use super::{Grant, Padded};
use crate::{AtomicBool, AtomicU32, AtomicU64, Backoff, Ordering, wait_until};

/// Nodes unless told otherwise (at most 64): so many waiters stand in the queue.
#[cfg(not(any(loom, explored)))]
pub const NODES: usize = 64;
/// Nodes unless told otherwise: few, so that the models use them again.
#[cfg(any(loom, explored))]
pub const NODES: usize = 2;

/// The orders the lock lives by; a parameter so that tests can weaken each one.
pub trait QueuedOrder {
    /// The exchange that sets `held`.
    const TAKE: Ordering;
    /// The store that clears it.
    const RELEASE: Ordering;
    /// The exchange that makes a node the tail.
    const ENQUEUE: Ordering;
    /// The store that tells the one before who is next.
    const LINK: Ordering;
    /// The load that finds out who is next.
    const FOLLOW: Ordering;
    /// The exchange that takes a node.
    const TAKE_NODE: Ordering;
    /// The exchange that gives it back.
    const GIVE_NODE: Ordering;
}

/// The only orders used outside tests.
#[derive(Debug)]
pub enum Handover {}

impl QueuedOrder for Handover {
    const TAKE: Ordering = Ordering::Acquire;
    const RELEASE: Ordering = Ordering::Release;
    const ENQUEUE: Ordering = Ordering::AcqRel;
    const LINK: Ordering = Ordering::Release;
    const FOLLOW: Ordering = Ordering::Acquire;
    const TAKE_NODE: Ordering = Ordering::Acquire;
    const GIVE_NODE: Ordering = Ordering::Release;
}

/// The lives of a node, for a model checker to check: that what others write into it lies within the life it is meant for. A
/// checker that keeps stores in the order in which it made them would not see a late one otherwise.
#[derive(Debug)]
struct Life(#[cfg(loom)] loom::cell::UnsafeCell<()>, #[cfg(explored)] crate::explored::PlainU64);

#[cfg_attr(
    not(any(loom, explored)),
    allow(clippy::unused_self, reason = "only a model checker has something to check")
)]
impl Life {
    #[cfg(not(any(loom, explored)))]
    const fn new() -> Self {
        Self()
    }

    #[cfg(loom)]
    fn new() -> Self {
        Self(loom::cell::UnsafeCell::new(()))
    }

    #[cfg(explored)]
    fn new() -> Self {
        Self(crate::explored::PlainU64::new(0))
    }

    /// A new owner clears the node: what was done to it before must be over.
    fn begin(&self) {
        #[cfg(loom)]
        self.0.with_mut(|_| ());
        #[cfg(explored)]
        self.0.set(0);
    }

    /// Another thread writes into it.
    fn reach_in(&self) {
        #[cfg(loom)]
        self.0.with(|_| ());
        #[cfg(explored)]
        let _ = self.0.get();
    }
}

/// One waiter.
#[derive(Debug)]
struct Node {
    /// The waiter behind: its node's number + 1, 0 = none has told yet.
    next: AtomicU32,
    /// Nobody is before this one.
    front: AtomicBool,
    life: Life,
}

#[derive(Debug)]
struct Words {
    held: AtomicBool,
    /// The last waiter: its node's number + 1, 0 = nobody waits.
    tail: AtomicU32,
}

/// The raw lock; see the [module](self). `N` is 1 to 64, for the nodes in use are the bits of one word:
///
/// ```compile_fail
/// use shadow_mmu_sync::lock::queued::{Handover, QueuedLock};
///
/// let lock = QueuedLock::<Handover, 65>::new();
/// ```
#[derive(Debug)]
pub struct QueuedLock<O = Handover, const N: usize = NODES> {
    words: Padded<Words>,
    /// Bit n: node n is taken.
    taken: Padded<AtomicU64>,
    nodes: [Padded<Node>; N],
    order: PhantomData<O>,
}

impl<O: QueuedOrder, const N: usize> QueuedLock<O, N> {
    /// A free lock.
    #[cfg(not(any(loom, explored)))]
    #[must_use]
    pub const fn new() -> Self {
        const { Self::check() };
        Self {
            words: Padded(Words { held: AtomicBool::new(false), tail: AtomicU32::new(0) }),
            taken: Padded(AtomicU64::new(0)),
            nodes: [const { Padded(Node { next: AtomicU32::new(0), front: AtomicBool::new(false), life: Life::new() }) };
                N],
            order: PhantomData,
        }
    }

    /// A free lock.
    #[cfg(any(loom, explored))]
    #[must_use]
    pub fn new() -> Self {
        const { Self::check() };
        let node = |_| Padded(Node { next: AtomicU32::new(0), front: AtomicBool::new(false), life: Life::new() });
        Self {
            words: Padded(Words { held: AtomicBool::new(false), tail: AtomicU32::new(0) }),
            taken: Padded(AtomicU64::new(0)),
            nodes: core::array::from_fn(node),
            order: PhantomData,
        }
    }

    const fn check() {
        assert!(N >= 1 && N <= u64::BITS as usize, "a queue has 1 to 64 nodes");
    }

    /// The node that a link names; `None` for 0.
    fn node(&self, link: u32) -> Option<&Node> {
        (link as usize).checked_sub(1).map(|number| &self.nodes[number].0)
    }

    fn set_held(&self) -> bool {
        // ORDERING(mmu-lock-held): pairs with the store of `release`.
        self.words.0.held.compare_exchange(false, true, O::TAKE, Ordering::Relaxed).is_ok()
    }

    /// Takes the lock after all who asked before; the flag is true if it was not free at once.
    #[inline]
    pub fn acquire(&self) -> (Grant, bool) {
        if let Some(grant) = self.try_acquire() {
            return (grant, false);
        }
        (self.wait_in_queue(), true)
    }

    /// Takes the lock if it is free and nobody waits.
    #[inline]
    pub fn try_acquire(&self) -> Option<Grant> {
        // ORDERING(mmu-lock-queue): who joined before this thread asked is seen; one who joins now came later.
        let alone = self.words.0.tail.load(Ordering::Relaxed) == 0;
        (alone && self.set_held()).then(|| Grant::new(0))
    }

    #[cold]
    fn wait_in_queue(&self) -> Grant {
        let number = self.take_node();
        let own = &self.nodes[number].0;
        let link = number as u32 + 1;
        own.life.begin();
        // ORDERING(mmu-lock-queue): the node is nobody else's yet; the exchange of the tail publishes it.
        own.next.store(0, Ordering::Relaxed);
        // ORDERING(mmu-lock-queue): as above.
        own.front.store(false, Ordering::Relaxed);
        // ORDERING(mmu-lock-queue): Release for the node just cleared, Acquire for that of the one before.
        if let Some(before) = self.node(self.words.0.tail.swap(link, O::ENQUEUE)) {
            before.life.reach_in();
            // ORDERING(mmu-lock-queue): the one before does not give its node away until it saw this.
            before.next.store(link, O::LINK);
            // ORDERING(mmu-lock-queue): only whose turn it is; what is protected comes with `held`.
            wait_until(|| own.front.load(Ordering::Relaxed));
        }
        try_until(|| !self.is_held() && self.set_held());
        self.make_way(own, link);
        // ORDERING(mmu-lock-queue): all that was done to the node comes before the next owner clears it.
        self.taken.0.fetch_and(!(1 << number), O::GIVE_NODE);
        Grant::new(0)
    }

    /// Leaves the queue: the next waiter becomes the front, if there is one.
    fn make_way(&self, own: &Node, link: u32) {
        // ORDERING(mmu-lock-queue): to be the tail still means that nobody knows this node.
        if self.words.0.tail.compare_exchange(link, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
        let mut next = None;
        wait_until(|| {
            // ORDERING(mmu-lock-queue): pairs with the store that links, so that the next one's node is clear by now.
            next = self.node(own.next.load(O::FOLLOW));
            next.is_some()
        });
        if let Some(next) = next {
            next.life.reach_in();
            // ORDERING(mmu-lock-queue): the next one gives its node away only after this thread's release of `held`.
            next.front.store(true, Ordering::Relaxed);
        }
    }

    /// A free node, waiting for one if there are more waiters than nodes.
    fn take_node(&self) -> usize {
        let mut found = 0;
        try_until(|| {
            // ORDERING(mmu-lock-queue): a guess; the exchange decides.
            let taken = self.taken.0.load(Ordering::Relaxed);
            found = taken.trailing_ones() as usize;
            // ORDERING(mmu-lock-queue): pairs with the exchange that gave the node back.
            found < N
                && self.taken.0.compare_exchange(taken, taken | 1 << found, O::TAKE_NODE, Ordering::Relaxed).is_ok()
        });
        found
    }

    /// Gives the lock back. `grant` must be of this lock.
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "a grant ends here: it must not be usable twice")]
    pub fn release(&self, grant: Grant) {
        let Grant(_) = grant;
        // ORDERING(mmu-lock-held): the next holder sees what was done under this grant.
        self.words.0.held.store(false, O::RELEASE);
    }

    /// Whether somebody holds the lock (a moment ago).
    #[must_use]
    pub fn is_held(&self) -> bool {
        // ORDERING(mmu-lock-held): a guess, and a figure for people.
        self.words.0.held.load(Ordering::Relaxed)
    }

    /// The last waiter, as a link; 0 = nobody waits.
    #[cfg(test)]
    pub(super) fn tail(&self) -> u32 {
        // ORDERING(mmu-lock-queue): for tests.
        self.words.0.tail.load(Ordering::Relaxed)
    }
}

/// Tries until it succeeds, giving the processor away after a while; a try that fails changes nothing.
fn try_until(mut holds: impl FnMut() -> bool) {
    let mut backoff = Backoff::new();
    while !holds() {
        backoff.wait();
    }
}

impl<O: QueuedOrder, const N: usize> Default for QueuedLock<O, N> {
    fn default() -> Self {
        Self::new()
    }
}
