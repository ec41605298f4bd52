//! P3, P5 and P6: the guest-mode handshake, against a sync and against the reuse of a shadow page.

use shadow_mmu_sync::lock::QueuedLock;

use super::{Model, STALE, breaks, holds};
use crate::{
    requests::{GuestMode, HandshakeOrder, KvmHandshake, kick_and_wait},
    shadow::publish::{KvmOrder, SyncState, publish_table, walk_load, withdraw},
    sync::{AtomicU64, Ordering},
};

struct NoEnterFence;
impl HandshakeOrder for NoEnterFence {
    const ENTER_FENCE: Option<Ordering> = None;
}

struct NoKickFence;
impl HandshakeOrder for NoKickFence {
    const KICK_FENCE: Option<Ordering> = None;
}

struct FencesAcqRel;
impl HandshakeOrder for FencesAcqRel {
    const ENTER_FENCE: Option<Ordering> = Some(Ordering::AcqRel);
    const KICK_FENCE: Option<Ordering> = Some(Ordering::AcqRel);
}

struct LeaveRelaxed;
impl HandshakeOrder for LeaveRelaxed {
    const LEAVE: Ordering = Ordering::Relaxed;
}

struct WaitRelaxed;
impl HandshakeOrder for WaitRelaxed {
    const WAIT: Ordering = Ordering::Relaxed;
}

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The request is raised, nobody is waited for.
    NoWait,
    /// The mapping stays writable.
    NoProtect,
    /// The vCPU takes the request and keeps its TLB.
    NoFlush,
    /// The guest table is read, and the mark taken away, before the mapping is write-protected.
    SyncFirst,
}

const FLUSH: u32 = 8;
const WRITABLE: u64 = 0x4027;
const READ_ONLY: u64 = 0x4025;
const OLD_LEAF: u64 = 0x5025;
const LINKED: u64 = 0x6827;
const IN_USE: u64 = 7;
const FREED: u64 = 0;
const REUSED: &str = "a freed shadow page was walked";

/// An unsync guest table, mapped writable, with that mapping in the vCPU's TLB.
struct Machine<H> {
    steps: Steps,
    lock: QueuedLock,
    root: SyncState<KvmOrder>,
    spte: AtomicU64,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
    mode: GuestMode<H>,
}

impl<H: HandshakeOrder> Machine<H> {
    fn kick(&self) {
        if self.steps == Steps::NoWait {
            self.mode.request(FLUSH);
        } else {
            kick_and_wait([&self.mode], None, FLUSH);
        }
    }

    fn read_guest_entry(&self) {
        if self.guest_entry.load(Ordering::Relaxed) == 0 {
            withdraw(&self.leaf, 0);
        }
        self.root.sub_unsync_child();
    }

    fn sync(&self) {
        let (grant, _) = self.lock.acquire();
        if self.root.children_locked() != 0 {
            if self.steps == Steps::SyncFirst {
                self.read_guest_entry();
            }
            if self.steps != Steps::NoProtect {
                withdraw(&self.spte, READ_ONLY);
            }
            self.kick();
            if self.steps != Steps::SyncFirst {
                self.read_guest_entry();
            }
        }
        self.lock.release(grant);
    }

    /// One guest store into its table by TLB or walk, if they let it, and then a flush.
    fn store_and_flush(&self) {
        let mut cached = Some(WRITABLE);
        while !self.mode.enter() {
            self.mode.take(FLUSH);
            if self.steps != Steps::NoFlush {
                cached = None;
            }
        }
        let stored = cached.unwrap_or_else(|| walk_load(&self.spte)) == WRITABLE;
        if stored {
            self.guest_entry.store(0, Ordering::Relaxed);
        }
        self.mode.leave();
        if stored {
            if self.root.observe() {
                let (grant, _) = self.lock.acquire();
                if self.root.children_locked() != 0 {
                    self.read_guest_entry();
                }
                self.lock.release(grant);
            }
            assert_eq!(walk_load(&self.leaf), 0, "{STALE}");
        }
    }
}

/// A store in flight against the sync of the page it goes to (P3), and a request against an entry (P5).
fn p3<H: HandshakeOrder + 'static>(steps: Steps) -> Model {
    let machine = Machine::<H> {
        steps,
        lock: QueuedLock::new(),
        root: SyncState::new(),
        spte: AtomicU64::new(WRITABLE),
        guest_entry: AtomicU64::new(1),
        leaf: AtomicU64::new(OLD_LEAF),
        mode: GuestMode::new(),
    };
    machine.root.add_unsync_child();
    Model::new(machine, [Machine::sync, Machine::store_and_flush])
}

/// A link and the shadow page it leads to.
struct Linked<H> {
    wait: bool,
    mode: GuestMode<H>,
    parent: AtomicU64,
    child: AtomicU64,
}

impl<H: HandshakeOrder> Linked<H> {
    fn unlink_and_free(&self) {
        withdraw(&self.parent, 0);
        if self.wait {
            kick_and_wait([&self.mode], None, FLUSH);
        } else {
            self.mode.request(FLUSH);
        }
        withdraw(&self.child, FREED);
    }

    fn walk(&self) {
        while !self.mode.enter() {
            self.mode.take(FLUSH);
        }
        if walk_load(&self.parent) == LINKED {
            assert_eq!(walk_load(&self.child), IN_USE, "{REUSED}");
        }
        self.mode.leave();
    }
}

/// A walk without the lock against the reuse of the page that it walks (P6).
fn p6<H: HandshakeOrder + 'static>(wait: bool) -> Model {
    let linked = Linked::<H> { wait, mode: GuestMode::new(), parent: AtomicU64::new(0), child: AtomicU64::new(IN_USE) };
    publish_table(&linked.parent, LINKED);
    Model::new(linked, [Linked::unlink_and_free, Linked::walk])
}

#[test]
fn p3_a_sync_waits_for_the_stores_under_way() {
    holds("P3", || p3::<KvmHandshake>(Steps::Right));
}

#[test]
fn p3_twin_without_the_fence_of_enter() {
    breaks("P3 twin, no enter fence", STALE, || p3::<NoEnterFence>(Steps::Right));
}

#[test]
fn p3_twin_without_the_fence_of_the_kick() {
    breaks("P3 twin, no kick fence", STALE, || p3::<NoKickFence>(Steps::Right));
}

#[test]
fn p3_twin_fences_acquire_release() {
    breaks("P3 twin, fences AcqRel", STALE, || p3::<FencesAcqRel>(Steps::Right));
}

#[test]
fn p3_twin_leave_relaxed() {
    breaks("P3 twin, leave Relaxed", STALE, || p3::<LeaveRelaxed>(Steps::Right));
}

#[test]
fn p3_twin_wait_relaxed() {
    breaks("P3 twin, wait Relaxed", STALE, || p3::<WaitRelaxed>(Steps::Right));
}

#[test]
fn p3_twin_without_a_wait() {
    breaks("P3 twin, no wait", STALE, || p3::<KvmHandshake>(Steps::NoWait));
}

#[test]
fn p3_twin_without_protection() {
    breaks("P3 twin, no protection", STALE, || p3::<KvmHandshake>(Steps::NoProtect));
}

#[test]
fn p3_twin_without_the_tlb_flush() {
    breaks("P3 twin, no TLB flush", STALE, || p3::<KvmHandshake>(Steps::NoFlush));
}

#[test]
fn p3_twin_synced_before_protection() {
    breaks("P3 twin, sync first", STALE, || p3::<KvmHandshake>(Steps::SyncFirst));
}

#[test]
fn p6_a_page_is_not_reused_under_a_walk() {
    holds("P6", || p6::<KvmHandshake>(true));
}

#[test]
fn p6_twin_without_the_fence_of_enter() {
    breaks("P6 twin, no enter fence", REUSED, || p6::<NoEnterFence>(true));
}

#[test]
fn p6_twin_without_the_fence_of_the_kick() {
    breaks("P6 twin, no kick fence", REUSED, || p6::<NoKickFence>(true));
}

#[test]
fn p6_twin_fences_acquire_release() {
    breaks("P6 twin, fences AcqRel", REUSED, || p6::<FencesAcqRel>(true));
}

#[test]
fn p6_twin_without_a_wait() {
    breaks("P6 twin, no wait", REUSED, || p6::<KvmHandshake>(false));
}
