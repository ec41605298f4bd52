//! A word that is not atomic: what a lock protects.

use core::panic::Location;

use super::{
    event::{Half, Word},
    runner,
};

/// A number that two threads must not touch at once: the checker reports accesses that nothing orders as a data race.
#[derive(Debug)]
pub struct PlainU64(Word);

impl PlainU64 {
    /// To be made before the threads begin.
    #[track_caller]
    pub fn new(value: u64) -> Self {
        Self(runner::word(value, Location::caller()))
    }

    /// Reads it.
    #[track_caller]
    pub fn get(&self) -> u64 {
        runner::read(self.0, None, Half::No, Location::caller())
    }

    /// Writes it.
    #[track_caller]
    pub fn set(&self, value: u64) {
        runner::write(self.0, value, None, false, Location::caller());
    }
}
