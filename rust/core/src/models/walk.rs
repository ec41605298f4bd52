//! P6: a walk without the lock against the freeing of the shadow page that it walks.

use super::{
    Model, breaks, holds,
    orders::{FencesAcqRel, LeaveRelaxed, NoEnterFence, NoKickFence, StoreRelaxed, WaitRelaxed, WalkRelaxed},
    plain::{Plain, RACE},
};
use crate::{
    requests::{GuestMode, HandshakeOrder, KvmHandshake, kick_and_wait},
    shadow::publish::{
        KvmOrder,
        entry::{PublishOrder, publish_table, walk_load_as, withdraw},
    },
    sync::AtomicU64,
};

const FLUSH: u32 = 8;
const LINKED: u64 = 0x6827;

/// A link and the shadow page it leads to.
struct Linked<H, O> {
    wait: bool,
    mode: GuestMode<H>,
    parent: AtomicU64,
    child: Plain,
    order: core::marker::PhantomData<O>,
}

impl<H: HandshakeOrder, O: PublishOrder> Linked<H, O> {
    /// A fresh page is initialised and linked; then it is zapped and freed.
    fn link_unlink_and_free(&self) {
        self.child.write();
        publish_table::<O>(&self.parent, LINKED);
        withdraw(&self.parent, 0);
        if self.wait {
            kick_and_wait([&self.mode], None, FLUSH);
        } else {
            self.mode.request(FLUSH);
        }
        self.child.write();
    }

    fn walk(&self) {
        while !self.mode.enter() {
            self.mode.take(FLUSH);
        }
        if walk_load_as::<O>(&self.parent) == LINKED {
            self.child.read();
        }
        self.mode.leave();
    }
}

fn p6<H: HandshakeOrder + 'static, O: PublishOrder + 'static>(wait: bool) -> Model {
    let linked = Linked::<H, O> {
        wait,
        mode: GuestMode::new(),
        parent: AtomicU64::new(0),
        child: Plain::new(),
        order: core::marker::PhantomData,
    };
    Model::new(linked, [Linked::link_unlink_and_free, Linked::walk])
}

#[test]
fn p6_a_page_is_not_freed_under_a_walk() {
    holds("P6", || p6::<KvmHandshake, KvmOrder>(true));
}

#[test]
fn p6_twin_without_the_fence_of_enter() {
    breaks("P6 twin, no enter fence", RACE, || p6::<NoEnterFence, KvmOrder>(true));
}

#[test]
fn p6_twin_without_the_fence_of_the_kick() {
    breaks("P6 twin, no kick fence", RACE, || p6::<NoKickFence, KvmOrder>(true));
}

#[test]
fn p6_twin_fences_acquire_release() {
    breaks("P6 twin, fences AcqRel", RACE, || p6::<FencesAcqRel, KvmOrder>(true));
}

#[test]
fn p6_twin_leave_relaxed() {
    breaks("P6 twin, leave Relaxed", RACE, || p6::<LeaveRelaxed, KvmOrder>(true));
}

#[test]
fn p6_twin_wait_relaxed() {
    breaks("P6 twin, wait Relaxed", RACE, || p6::<WaitRelaxed, KvmOrder>(true));
}

#[test]
fn p6_twin_without_a_wait() {
    breaks("P6 twin, no wait", RACE, || p6::<KvmHandshake, KvmOrder>(false));
}

#[test]
fn p6_twin_child_linked_relaxed() {
    breaks("P6 twin, link Relaxed", RACE, || p6::<KvmHandshake, StoreRelaxed>(true));
}

#[test]
fn p6_twin_walk_relaxed() {
    breaks("P6 twin, walk Relaxed", RACE, || p6::<KvmHandshake, WalkRelaxed>(true));
}
