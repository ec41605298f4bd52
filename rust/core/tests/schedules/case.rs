//! One scheduled run, its file, and making its schedule small.

use std::time::Instant;

use serde_json::{Value, json};
use shadow_mmu::{
    Control, Gpa, LockKind, MemoryRegion, Mutant, Policy, Vm, VmConfig,
    stress::{
        self, Limit, StressConfig,
        schedule::{Choice, Scheduler, Strategy, Trace},
    },
};

const FORMAT: &str = "shadow-mmu schedule";
const VERSION: u64 = 1;

/// What is run under a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    pub(crate) vcpus: usize,
    pub(crate) policy: Policy,
    pub(crate) lock: LockKind,
    pub(crate) mutant: Mutant,
    pub(crate) seed: u64,
    pub(crate) steps: u64,
}

/// A schedule that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Saved {
    pub(crate) case: Case,
    pub(crate) choices: Vec<Choice>,
    /// What was found.
    pub(crate) found: String,
}

impl Case {
    /// Runs the case; the first thing found, and what was chosen.
    pub(crate) fn run(&self, strategy: &Strategy) -> (Option<String>, Trace) {
        let Case { vcpus, policy, lock, mutant, seed, steps } = *self;
        let slots = vec![MemoryRegion::ram(Gpa::new(0), stress::bytes_needed(vcpus))];
        let vm = Vm::new(VmConfig { slots, vcpus, policy, lock, mutant, ..VmConfig::default() }).unwrap();
        let config = StressConfig {
            seed,
            limit: Limit::Steps(steps),
            audit_every: 25,
            // A run that takes long is no hang: threads that are not chosen make no step.
            patience: core::time::Duration::from_mins(2),
            ..StressConfig::default()
        };
        let scheduler = Scheduler::new(vcpus, strategy);
        let found = match stress::stress_scheduled(&vm, &config, &Control::new(), &scheduler) {
            Ok(report) => report.findings.first().map(ToString::to_string),
            Err(error) => Some(error.to_string()),
        };
        (found, scheduler.trace())
    }

    pub(crate) fn mutant_name(&self) -> &'static str {
        Mutant::ALL.iter().find(|(_, mutant)| *mutant == self.mutant).map_or("none", |(name, _)| name)
    }
}

impl Saved {
    pub(crate) fn to_json(&self) -> String {
        let Case { vcpus, policy, lock, seed, steps, .. } = self.case;
        let choices: Vec<_> = self.choices.iter().map(|one| json!([one.thread, one.point, one.to])).collect();
        let value = json!({
            "format": FORMAT, "version": VERSION, "vcpus": vcpus, "policy": policy.to_string(), "lock": lock.name(),
            "mutant": self.case.mutant_name(), "seed": seed, "steps": steps, "found": self.found,
        });
        // One line of choices: they are many and say nothing to a reader.
        let head = serde_json::to_string_pretty(&value).unwrap();
        format!("{},\n  \"choices\": {}\n}}\n", head.trim_end_matches("\n}"), Value::Array(choices))
    }

    pub(crate) fn from_json(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("{error}: expected a JSON object"))?;
        if value["format"] != FORMAT {
            return Err(format!("format {}, expected format {FORMAT:?}", value["format"]));
        }
        if value["version"] != VERSION {
            return Err(format!("version {}, expected {VERSION}", value["version"]));
        }
        let number = |name: &str| value[name].as_u64().ok_or(format!("{name}: got {}, expected a number", value[name]));
        let word = |name: &str| value[name].as_str().ok_or(format!("{name}: got {}, expected text", value[name]));
        let choices = value["choices"].as_array().ok_or("choices: expected an array")?;
        let choice = |one: &Value| {
            let part = |at: usize| one[at].as_u64().ok_or(format!("choice {one}: expected three numbers"));
            let thread =
                |at| part(at).and_then(|n| u16::try_from(n).map_err(|_| format!("choice {one}: no thread {n}")));
            Ok(Choice { thread: thread(0)?, point: part(1)?, to: thread(2)? })
        };
        Ok(Self {
            case: Case {
                vcpus: number("vcpus")? as usize,
                policy: word("policy")?.parse().map_err(|error: shadow_mmu::Error| error.to_string())?,
                lock: word("lock")?.parse().map_err(|error: shadow_mmu::Error| error.to_string())?,
                mutant: word("mutant")?.parse().map_err(|error: shadow_mmu::Error| error.to_string())?,
                seed: number("seed")?,
                steps: number("steps")?,
            },
            choices: choices.iter().map(choice).collect::<Result<_, String>>()?,
            found: word("found")?.into(),
        })
    }
}

/// Drops steps, then choices, for as long as anything is still found and there is time; what is left is run once more, so that it
/// replays exactly.
pub(crate) fn shrunk(case: Case, choices: Vec<Choice>, deadline: Instant) -> Saved {
    let (mut case, mut choices) = (case, choices);
    while case.steps > 1 {
        let fewer = Case { steps: case.steps * 3 / 4, ..case };
        if fewer.run(&Strategy::Replay(choices.clone())).0.is_none() {
            break;
        }
        case = fewer;
    }
    let mut chunk = choices.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        while start < choices.len() && Instant::now() < deadline {
            let end = choices.len().min(start + chunk);
            let fewer: Vec<Choice> = choices[..start].iter().chain(&choices[end..]).copied().collect();
            let (found, trace) = case.run(&Strategy::Replay(fewer));
            // What was made of them is what replays: choices that could not be made are gone.
            if found.is_some() && trace.choices.len() < choices.len() {
                choices = trace.choices;
            } else {
                start = end;
            }
        }
        if chunk == 1 || Instant::now() >= deadline {
            break;
        }
        chunk = chunk.div_ceil(2).min(chunk - 1);
    }
    let (found, trace) = case.run(&Strategy::Replay(choices));
    Saved { case, choices: trace.choices, found: found.expect("it was found with these") }
}
