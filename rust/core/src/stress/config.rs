//! What a stress run is made of.

use core::time::Duration;

use fastrand::Rng;

use crate::error::{Error, Result};

macro_rules! rates {
    ($($(#[$doc:meta])* $name:ident $variant:ident = $default:literal,)*) => {
        /// How often each action is taken, relative to the others.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct Rates {
            $($(#[$doc])* pub $name: u32,)*
        }

        impl Default for Rates {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// An action.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Draw {
            $($variant,)*
        }

        impl Rates {
            /// The names, in the order in which they are declared.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// Sets the rate of this name.
            ///
            /// # Errors
            /// [`Error::Config`] for a name that is none, with those there are.
            pub fn set(&mut self, name: &str, rate: u32) -> Result<()> {
                match name {
                    $(stringify!($name) => self.$name = rate,)*
                    _ => return Err(Error::Config { what: "rate", got: name.into(), expected: Self::NAMES.join(", ") }),
                }
                Ok(())
            }

            fn total(&self) -> u64 {
                0 $(+ u64::from(self.$name))*
            }

            /// One action, as often as its rate says.
            pub(super) fn draw(&self, rng: &mut Rng) -> Draw {
                let mut left = rng.u64(..self.total());
                $(
                    if left < u64::from(self.$name) {
                        return Draw::$variant;
                    }
                    left -= u64::from(self.$name);
                )*
                let _ = left;
                Draw::Access
            }
        }
    };
}

rates! {
    /// Loads, stores, translations.
    access Access = 640,
    /// CR3 writes between the roots of a KPTI pair, and to other processes.
    switch Switch = 90,
    /// Edits of last-level entries, most of them shot down.
    leaf Leaf = 110,
    /// Edits of upper entries.
    branch Branch = 24,
    /// Steps in the life of a table that becomes data and a table again.
    reuse Reuse = 60,
    /// INVLPG of some page.
    invlpg Invlpg = 20,
    /// CR3 written with the value it has.
    reload Reload = 16,
    /// The host zaps the shadow pages of a table or a root.
    zap Zap = 6,
    /// CR0.WP, CR4.SMEP, CR4.PGE, EFER.NXE.
    registers Registers = 3,
}

/// When a run ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// After so long.
    Seconds(f64),
    /// After so many steps of each vCPU, a few operations each.
    Steps(u64),
}

/// How the vCPUs' operations are interleaved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Interleaving {
    /// A thread for each vCPU.
    #[default]
    Threads,
    /// One thread, whose next vCPU is drawn from the seed: deterministic, and recorded.
    Turns,
}

/// A stress run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StressConfig {
    /// Of everything that is drawn.
    pub seed: u64,
    /// When to end.
    pub limit: Limit,
    /// Steps of vCPU 0 between two audits with every vCPU at rest; 0: one audit at the end.
    pub audit_every: u64,
    /// How often each action is taken.
    pub rates: Rates,
    /// Threads, or turns on one.
    pub interleaving: Interleaving,
    /// A vCPU that makes no step for so long is reported as stuck, and the run ends.
    pub patience: Duration,
    /// Go on after a violation.
    pub keep_going: bool,
}

impl Default for StressConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            limit: Limit::Seconds(10.0),
            audit_every: 20_000,
            rates: Rates::default(),
            interleaving: Interleaving::default(),
            patience: Duration::from_secs(5),
            keep_going: false,
        }
    }
}

impl StressConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Config`] naming the parameter, the value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let refuse = |what, got: String, expected: &str| Err(Error::Config { what, got, expected: expected.into() });
        match self.limit {
            Limit::Seconds(seconds) if !(seconds > 0.0 && seconds <= 1e6) => {
                refuse("seconds", seconds.to_string(), "more than 0 and at most 1000000")
            }
            Limit::Steps(0) => refuse("steps", "0".into(), "at least 1"),
            Limit::Seconds(_) if self.interleaving == Interleaving::Turns => {
                refuse("limit of turns", "seconds".into(), "steps: a run in turns is the same every time")
            }
            _ if self.rates.access == 0 => refuse("rate of access", "0".into(), "at least 1"),
            _ if self.patience.is_zero() => refuse("patience", "0 s".into(), "more than 0 s"),
            _ => Ok(()),
        }
    }
}
