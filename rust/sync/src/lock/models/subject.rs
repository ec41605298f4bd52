//! What both checkers of the locks share: a lock as their models see it, and the report of an exploration.

use std::{env, fs::OpenOptions, io::Write, time::Instant};

use super::super::{Grant, QueuedLock, TicketLock, TtasLock, queued, ticket, ttas};

/// The checker that runs the models of this build.
const TOOL: &str = if cfg!(loom) { "loom" } else { "explored" };

/// What the models ask of a lock.
pub(super) trait Lock: 'static {
    fn free() -> Self;
    fn acquire(&self) -> (Grant, bool);
    fn try_acquire(&self) -> Option<Grant>;
    fn release(&self, grant: Grant);
    fn is_held(&self) -> bool;
}

macro_rules! lock {
    ($lock:ty, $order:path $(, $nodes:ident)?) => {
        impl<O: $order + 'static $(, const $nodes: usize)?> Lock for $lock {
            fn free() -> Self {
                Self::new()
            }
            fn acquire(&self) -> (Grant, bool) {
                self.acquire()
            }
            fn try_acquire(&self) -> Option<Grant> {
                self.try_acquire()
            }
            fn release(&self, grant: Grant) {
                self.release(grant);
            }
            fn is_held(&self) -> bool {
                self.is_held()
            }
        }
    };
}

lock!(QueuedLock<O, N>, queued::QueuedOrder, N);
lock!(TicketLock<O>, ticket::TicketOrder);
lock!(TtasLock<O>, ttas::TtasOrder);

/// A line for the reader (`cargo test -- --nocapture`), and one of JSON in the file that `MODELS_OUT` names, as the
/// models of the core leave them.
#[allow(clippy::print_stdout, reason = "the size of each exploration is what a reader of the run looks for")]
pub(super) fn report(name: &str, kind: &str, text: &str, executions: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{name}: {text} ({TOOL}, {seconds:.1} s)");
    if let Some(path) = env::var_os("MODELS_OUT") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("MODELS_OUT can be written");
        let line = format!(
            "{{\"model\": {name:?}, \"kind\": {kind:?}, \"tool\": {TOOL:?}, \"executions\": {executions}, \
             \"seconds\": {seconds:.3}}}\n"
        );
        file.write_all(line.as_bytes()).expect("MODELS_OUT can be written");
    }
}
