//! Threads that start together, or not at all.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use crate::{
    error::{Error, Result},
    run::Control,
    sync::{AtomicU32, Backoff, Ordering},
};

/// Where threads wait until all of them are there.
#[derive(Debug, Default)]
struct Gate {
    arrived: AtomicU32,
    state: AtomicU32,
}

const GO: u32 = 1;
const ABORT: u32 = 2;

impl Gate {
    /// Arrives and waits; whether to go on.
    fn pass(&self) -> bool {
        // ORDERING(start-gate): only counts; the state below hands over.
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let mut backoff = Backoff::new();
        loop {
            // ORDERING(start-gate): pairs with `open`.
            match self.state.load(Ordering::Acquire) {
                GO => return true,
                ABORT => return false,
                _ => backoff.wait(),
            }
        }
    }

    fn wait_for(&self, count: u32) {
        let mut backoff = Backoff::new();
        // ORDERING(start-gate): only counts.
        while self.arrived.load(Ordering::Relaxed) < count {
            backoff.wait();
        }
    }

    fn open(&self, state: u32) {
        // ORDERING(start-gate): the threads see what the caller prepared.
        self.state.store(state, Ordering::Release);
    }
}

/// Runs each body on a thread of its own, all started together, and returns what each came to.
///
/// A body that panics stops the others by `control` and comes back as [`Error::Panic`].
///
/// # Errors
/// [`Error::Threads`] if not all threads can be had; no body has run then.
pub(crate) fn together<T, F>(bodies: Vec<F>, control: &Control) -> Result<Vec<Result<T>>>
where
    T: Send,
    F: FnOnce() -> Result<T> + Send,
{
    let gate = Gate::default();
    let wanted = bodies.len();
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(wanted);
        let mut failure = None;
        for (index, body) in bodies.into_iter().enumerate() {
            let gate = &gate;
            let body = move || gate.pass().then(|| guarded(index, control, body));
            match thread::Builder::new().name(format!("vcpu {index}")).spawn_scoped(scope, body) {
                Ok(thread) => threads.push(thread),
                Err(cause) => {
                    failure = Some(Error::Threads { wanted, cause: cause.to_string() });
                    break;
                }
            }
        }
        gate.wait_for(threads.len() as u32);
        gate.open(if failure.is_none() { GO } else { ABORT });
        let results = threads.into_iter().enumerate().filter_map(|(index, thread)| {
            // A panic is caught inside; what escaped it is told all the same.
            thread.join().unwrap_or_else(|_| Some(Err(Error::Panic { vcpu: index, message: "no message".into() })))
        });
        let results: Vec<_> = results.collect();
        failure.map_or(Ok(results), Err)
    })
}

/// Runs a vCPU thread's body; a panic stops the others and becomes an error.
fn guarded<T>(vcpu: usize, control: &Control, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        control.stop();
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        Err(Error::Panic { vcpu, message })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stops_the_others_and_comes_back_as_an_error() {
        let control = Control::new();
        let bodies: Vec<Box<dyn FnOnce() -> Result<u32> + Send>> = vec![
            Box::new(|| panic!("on purpose")),
            Box::new(|| {
                while !control.stopped() {
                    thread::yield_now();
                }
                Ok(7)
            }),
        ];
        let results = together(bodies, &control).unwrap();
        assert_eq!(results[0], Err(Error::Panic { vcpu: 0, message: "on purpose".into() }));
        assert_eq!(results[1], Ok(7));
    }

    #[test]
    fn an_aborted_gate_lets_nobody_pass() {
        let gate = Gate::default();
        gate.open(ABORT);
        assert!(!gate.pass());
    }
}
