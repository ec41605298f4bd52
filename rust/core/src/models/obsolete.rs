//! P5: a root that is zapped against the vCPU that enters the guest on it.
//!
//! Two claims: what hangs below a zapped root is not freed under a vCPU that is inside, and a vCPU that took the
//! request finds its root invalid, so that it does not go on with it.

use super::{
    Model, breaks, holds,
    orders::{FencesAcqRel, LeaveRelaxed, NoEnterFence, NoKickFence, RequestRelaxed, TakeRelaxed, WaitRelaxed},
    plain::{Plain, RACE},
};
use crate::{
    requests::{GuestMode, HandshakeOrder, KvmHandshake, kick_and_wait},
    shadow::role_word::RoleWord,
};

const FREE_OBSOLETE_ROOTS: u32 = 1;
const VALID: u32 = 4;
const INVALID: u32 = 4 | 1 << 11;
const KEPT: &str = "an obsolete root stays in use after its request";

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The requests are looked at before the vCPU is inside.
    TestBeforeMode,
    /// No request is raised: the vCPU is waited for, and that is all.
    NoRequest,
    /// The request is raised, nobody is waited for.
    NoWait,
    /// Freed before the request.
    FreeFirst,
    /// The role becomes invalid after the request.
    RoleLast,
}

/// A vCPU's cached root, and what the zap of it frees.
struct Machine<H> {
    steps: Steps,
    role: RoleWord,
    below: Plain,
    mode: GuestMode<H>,
}

impl<H: HandshakeOrder> Machine<H> {
    fn zap(&self) {
        if self.steps == Steps::FreeFirst {
            self.below.write();
        }
        if self.steps != Steps::RoleLast {
            self.role.store(INVALID);
        }
        match self.steps {
            Steps::NoRequest => {
                kick_and_wait([&self.mode], None, 0);
            }
            Steps::NoWait => self.mode.request(FREE_OBSOLETE_ROOTS),
            _ => {
                kick_and_wait([&self.mode], None, FREE_OBSOLETE_ROOTS);
            }
        }
        if self.steps == Steps::RoleLast {
            self.role.store(INVALID);
        }
        if self.steps != Steps::FreeFirst {
            self.below.write();
        }
    }

    /// The announcement alone, as for a root that is pinned: nothing is freed, nobody is waited for.
    fn announce(&self) {
        if self.steps != Steps::RoleLast {
            self.role.store(INVALID);
        }
        self.mode.request(FREE_OBSOLETE_ROOTS);
        if self.steps == Steps::RoleLast {
            self.role.store(INVALID);
        }
    }

    /// Guest entry on the cached root, and one access. False if a request was served, after which the root is gone.
    fn enter_and_use(&self) {
        let inside = if self.steps == Steps::TestBeforeMode {
            let quiet = self.mode.pending() == 0;
            self.mode.begin();
            if !quiet {
                self.mode.leave();
            }
            quiet
        } else {
            self.mode.enter()
        };
        if inside {
            self.below.read();
            self.mode.leave();
        } else {
            self.serve();
        }
    }

    fn serve(&self) {
        if self.mode.take(FREE_OBSOLETE_ROOTS) != 0 {
            assert_eq!(self.role.load(), INVALID, "{KEPT}");
        }
    }
}

fn machine<H: HandshakeOrder>(steps: Steps) -> Machine<H> {
    let machine = Machine { steps, role: RoleWord::new(), below: Plain::new(), mode: GuestMode::new() };
    machine.role.store(VALID);
    machine
}

/// The zap of what a cached root leads to against an entry on that root.
fn p5<H: HandshakeOrder + 'static>(steps: Steps) -> Model {
    Model::new(machine::<H>(steps), [Machine::zap, Machine::enter_and_use])
}

/// The announcement against the vCPU that hears it.
fn p5_announced<H: HandshakeOrder + 'static>(steps: Steps) -> Model {
    Model::new(machine::<H>(steps), [Machine::announce, Machine::serve])
}

#[test]
fn p5_nothing_is_freed_under_a_vcpu_on_an_obsolete_root() {
    holds("P5", || p5::<KvmHandshake>(Steps::Right));
}

#[test]
fn p5_the_request_brings_the_invalid_role() {
    holds("P5, announced", || p5_announced::<KvmHandshake>(Steps::Right));
}

#[test]
fn p5_twin_without_the_fence_of_enter() {
    breaks("P5 twin, no enter fence", RACE, || p5::<NoEnterFence>(Steps::Right));
}

#[test]
fn p5_twin_without_the_fence_of_the_request() {
    breaks("P5 twin, no kick fence", RACE, || p5::<NoKickFence>(Steps::Right));
}

#[test]
fn p5_twin_fences_acquire_release() {
    breaks("P5 twin, fences AcqRel", RACE, || p5::<FencesAcqRel>(Steps::Right));
}

#[test]
fn p5_twin_request_tested_before_the_mode() {
    breaks("P5 twin, request tested before mode", RACE, || p5::<KvmHandshake>(Steps::TestBeforeMode));
}

#[test]
fn p5_twin_without_a_request() {
    breaks("P5 twin, no request", RACE, || p5::<KvmHandshake>(Steps::NoRequest));
}

#[test]
fn p5_twin_without_a_wait() {
    breaks("P5 twin, no wait", RACE, || p5::<KvmHandshake>(Steps::NoWait));
}

#[test]
fn p5_twin_freed_before_the_request() {
    breaks("P5 twin, freed first", RACE, || p5::<KvmHandshake>(Steps::FreeFirst));
}

#[test]
fn p5_twin_leave_relaxed() {
    breaks("P5 twin, leave Relaxed", RACE, || p5::<LeaveRelaxed>(Steps::Right));
}

#[test]
fn p5_twin_wait_relaxed() {
    breaks("P5 twin, wait Relaxed", RACE, || p5::<WaitRelaxed>(Steps::Right));
}

#[test]
fn p5_twin_request_relaxed() {
    breaks("P5 twin, request Relaxed", KEPT, || p5_announced::<RequestRelaxed>(Steps::Right));
}

#[test]
fn p5_twin_take_relaxed() {
    breaks("P5 twin, take Relaxed", KEPT, || p5_announced::<TakeRelaxed>(Steps::Right));
}

#[test]
fn p5_twin_role_after_the_request() {
    breaks("P5 twin, role after the request", KEPT, || p5_announced::<KvmHandshake>(Steps::RoleLast));
}
