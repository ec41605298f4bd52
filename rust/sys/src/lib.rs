//! What `shadow-mmu` needs and safe Rust cannot give, kept apart so that the core forbids `unsafe`.
//!
//! * [`hint`]: what the processor is told beforehand;
//! * [`lock`]: the fair queued `mmu_lock`;
//! * [`mem`]: large arrays of zero that cost nothing until they are touched, and never abort.
//!
//! Every `unsafe` block says why it is sound.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod hint;
pub mod lock;
pub mod mem;
