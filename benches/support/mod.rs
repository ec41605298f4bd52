//! What the benches share: clocks and guards, guests to measure, and the floors they are measured against.
#![allow(dead_code, reason = "each bench is a program of its own and uses a part of this")]
#![allow(unreachable_pub, reason = "the same")]

pub mod floor;
pub mod guest;
pub mod measure;
pub mod paged;
