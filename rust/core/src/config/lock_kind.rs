//! The kinds of `mmu_lock`.

use core::{fmt, str::FromStr};

use crate::error::Error;

/// What the `mmu_lock` is. The kind changes who waits for whom and for how long, never what comes out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LockKind {
    /// MCS queue, as the kernel's spinlock: first come, first served, each waiter on a line of its own.
    #[default]
    Queued,
    /// Tickets: first come, first served, all waiters on one line.
    Ticket,
    /// Test-and-test-and-set: no order among the waiters.
    Ttas,
    /// `parking_lot`'s mutex: waiters sleep.
    Mutex,
    /// `parking_lot`'s reader-writer lock: what turns out to have nothing to do takes it shared (docs/machine.md, 12).
    RwLock,
}

impl LockKind {
    /// Every kind with its name.
    pub const ALL: [(&'static str, LockKind); 5] = [
        ("queued", LockKind::Queued),
        ("ticket", LockKind::Ticket),
        ("ttas", LockKind::Ttas),
        ("mutex", LockKind::Mutex),
        ("rwlock", LockKind::RwLock),
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Whether several can hold it at once to look.
    pub const fn has_readers(self) -> bool {
        matches!(self, LockKind::RwLock)
    }
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LockKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|&(_, kind)| kind).ok_or_else(|| Error::Config {
            what: "lock",
            got: text.into(),
            expected: Self::ALL.map(|(name, _)| name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_bad_ones_say_what_is_accepted() {
        for (name, kind) in LockKind::ALL {
            assert_eq!(name.parse(), Ok(kind));
            assert_eq!(kind.to_string(), name);
        }
        for text in ["", "Queued", "mcs", "queued "] {
            let error = text.parse::<LockKind>().map_err(|error| error.to_string());
            assert!(error.is_err_and(|text| text.contains("queued, ticket, ttas, mutex, rwlock")), "{text}");
        }
    }
}
