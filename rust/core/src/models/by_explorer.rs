//! The models under the checker of `shadow_mmu_sync`: every execution that RC11 allows, without a bound.

use shadow_mmu_sync::explored::{Program, explore as explore_all};

use super::Model;

pub(super) const TOOL: &str = "explored";

/// Nothing: all orders are explored.
pub(super) fn give_way() {}

/// Complete executions until the end or the first failure (which counts as one), and that failure.
pub(super) fn explore(model: fn() -> Model) -> (u64, Result<(), String>) {
    let found = explore_all(|| {
        let Model { threads, at_end } = model();
        Program::new(threads, at_end)
    });
    match found.failure {
        Some(failure) => (found.executions + 1, Err(failure.to_string())),
        None => (found.executions, Ok(())),
    }
}
