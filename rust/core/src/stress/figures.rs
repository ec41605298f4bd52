//! What a run counted and found.

use std::collections::VecDeque;

use crate::op::{Op, Outcome, OutcomeRecord};

/// Operations of each vCPU that are kept for the report.
const TAIL: usize = 64;

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident $join:ident,)*) => {
        /// What was done, by one vCPU or by all.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Figures {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Figures {
            /// The names, in the order of [`values`](Self::values).
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// The values, in the order of [`NAMES`](Self::NAMES).
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)*]
            }

            /// Joins another vCPU's figures: sums, and maxima of what is one.
            pub(super) fn join(&mut self, other: &Figures) {
                $(self.$name = $join(self.$name, other.$name);)*
            }
        }
    };
}

fn sum(a: u64, b: u64) -> u64 {
    a + b
}

fn max(a: u64, b: u64) -> u64 {
    a.max(b)
}

figures! {
    /// Operations of the machine.
    operations sum,
    /// Accesses whose outcome the oracle found right.
    accesses_checked sum,
    /// Accesses that could not be judged: too many edits had come meanwhile.
    unjudged sum,
    /// Guest faults.
    faults sum,
    /// CR3 writes to another root.
    switches sum,
    /// Edits of table words.
    edits sum,
    /// Shoot-downs that every vCPU acknowledged.
    shoot_downs sum,
    /// Tables that became data and were linked again.
    table_reuses sum,
    /// Writes of CR0, CR4 and EFER.
    register_writes sum,
    /// Zaps and writes of the host.
    host_operations sum,
    /// Pages translated under each root at the end.
    swept sum,
    /// Most tries of one access.
    max_tries max,
    /// Most tries of one access beyond the steps that other vCPUs made meanwhile.
    max_retries max,
    /// Violations found by the vCPUs.
    violations sum,
}

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whose access or word it was; `None` for the audit's and the machine's.
    pub vcpu: Option<usize>,
    /// Which rule is broken: `D.5`, `audit`, `memory`, `liveness`, `lock hold`, ...
    pub what: &'static str,
    /// What was found and what was expected.
    pub text: String,
}

impl core::fmt::Display for Finding {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.vcpu {
            Some(vcpu) => write!(f, "{}, vCPU {vcpu}: {}", self.what, self.text),
            None => write!(f, "{}: {}", self.what, self.text),
        }
    }
}

/// The last operations of a vCPU, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tail(VecDeque<(Op, OutcomeRecord)>);

impl Tail {
    pub(super) fn push(&mut self, op: Op, outcome: Outcome) {
        if self.0.len() == TAIL {
            self.0.pop_front();
        }
        self.0.push_back((op, outcome.into()));
    }

    /// The operations with what they came to.
    pub fn iter(&self) -> impl Iterator<Item = &(Op, OutcomeRecord)> {
        self.0.iter()
    }
}
