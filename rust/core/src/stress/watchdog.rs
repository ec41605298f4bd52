//! A thread that notices a vCPU which makes no step, says what everybody is at, and ends the run.
//!
//! Threads end at their next step; one that spins for a lock that is never released has none. Then the run cannot return
//! to its caller, who waits for it: the report goes to stderr.

use core::fmt::Write as _;
use std::{
    io::Write as _,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use super::threads::Floor;
use crate::{
    error::{Error, Result},
    op::OpKind,
    stats::{LockReason, LockUser},
};

/// Looks made in the time after which a vCPU counts as stuck.
const LOOKS: u32 = 20;

/// Does `work` with a watchdog beside it; also returns the report on a vCPU that was stuck.
///
/// # Errors
/// [`Error::Threads`] if the watchdog's thread cannot be had.
pub(super) fn beside<R>(floor: &Floor<'_>, work: impl FnOnce() -> R) -> Result<(R, Option<String>)> {
    thread::scope(|scope| {
        let (end, ended) = mpsc::channel::<()>();
        let dog = thread::Builder::new()
            .name("watchdog".into())
            .spawn_scoped(scope, move || watch(floor, &ended))
            .map_err(|cause| Error::Threads { wanted: 1, cause: cause.to_string() })?;
        let result = work();
        // The receiver may be gone: it has said all it had to say.
        let _ = end.send(());
        Ok((result, dog.join().unwrap_or_else(|_| Some("the watchdog panicked".into()))))
    })
}

fn watch(floor: &Floor<'_>, ended: &mpsc::Receiver<()>) -> Option<String> {
    let vcpus = floor.vm.config().vcpus;
    let mut seen = vec![(u64::MAX, Instant::now()); vcpus];
    let pause = (floor.patience / LOOKS).max(Duration::from_millis(1));
    while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let now = Instant::now();
        for (vcpu, (steps, since)) in seen.iter_mut().enumerate() {
            let (current, _) = floor.clock.steps(vcpu);
            if *steps != current {
                (*steps, *since) = (current, now);
            }
        }
        // Whoever stopped first: others may only wait for it.
        let stuck = (0..vcpus).min_by_key(|&vcpu| seen[vcpu].1).unwrap_or(0);
        if now - seen[stuck].1 < floor.patience {
            continue;
        }
        let report = describe(floor, stuck, &seen, now);
        floor.halt();
        if ended.recv_timeout(floor.patience.max(Duration::from_secs(1))) == Err(RecvTimeoutError::Timeout) {
            let _ = writeln!(std::io::stderr(), "{report}\nits threads do not stop: the run cannot end before they do");
        }
        return Some(report);
    }
    None
}

/// What every vCPU is at.
fn describe(floor: &Floor<'_>, stuck: usize, seen: &[(u64, Instant)], now: Instant) -> String {
    let mut text = format!("vCPU {stuck} made no step for {:.1} s", (now - seen[stuck].1).as_secs_f64());
    if floor.wants_rest() {
        text += "; all are asked to rest for an audit";
    }
    for (vcpu, &(steps, since)) in seen.iter().enumerate() {
        let (_, kind) = floor.clock.steps(vcpu);
        let place = if steps.is_multiple_of(2) { "after" } else { "in" };
        let kind = OpKind::from_number(kind).map_or_else(|| "?".into(), |kind| format!("{kind:?}"));
        let mode = &floor.vm.shared.modes[vcpu];
        let _ = write!(
            text,
            "\nvCPU {vcpu}: {place} {kind}, operation {}, for {:.1} s; guest mode {} (epoch {}), requests {:#x}",
            steps.div_ceil(2),
            (now - since).as_secs_f64(),
            if mode.epoch().is_multiple_of(2) { "left" } else { "entered" },
            mode.epoch(),
            mode.pending()
        );
    }
    let users = floor.vm.lock_users();
    if users.is_none() {
        text += "\nthe mmu_lock is not watched (lock_watch)";
    }
    for LockUser { vcpu, phase, reason, nanos } in users.into_iter().flatten() {
        let who = vcpu.map_or_else(|| "the host".into(), |vcpu| format!("vCPU {vcpu}"));
        let (reason, seconds) = (LockReason::NAMES[reason as usize], Duration::from_nanos(nanos).as_secs_f64());
        let _ = write!(text, "\nmmu_lock: {who} {} for {reason}, for {seconds:.1} s", phase.name());
    }
    text
}
