//! Litmus programs as data, run on the atomics of this crate: `programs.json`, which `tests/litmus/checker_programs.py`
//! writes from the catalogue of the package's own explorer.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use serde_json::Value;

use crate::{
    AtomicU64, Backoff, Ordering,
    explored::{Exploration, PlainU64, Program, Rules, fence, search::explore_by},
    wait_until,
};

/// One case and what the other explorer found for it.
pub(super) struct Case(Value);

/// All cases, one a line.
pub(super) fn cases() -> Vec<Case> {
    parsed(include_str!("programs.json"))
}

fn parsed(lines: &str) -> Vec<Case> {
    lines.lines().map(|line| Case(serde_json::from_str(line).unwrap())).collect()
}

/// The cases of the file that `LITMUS_PROGRAMS` names, if it is set: `make soak-model` makes thousands by chance.
pub(super) fn more_cases() -> Vec<Case> {
    let path = std::env::var_os("LITMUS_PROGRAMS");
    path.map_or_else(Vec::new, |path| parsed(&std::fs::read_to_string(path).unwrap()))
}

type Registers = HashMap<String, u64>;

enum Place {
    Atomic(AtomicU64),
    Plain(PlainU64),
}

type Memory = HashMap<String, Place>;

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn order(value: &Value) -> Ordering {
    match text(value) {
        "RLX" => Ordering::Relaxed,
        "ACQ" => Ordering::Acquire,
        "REL" => Ordering::Release,
        "ACQ_REL" => Ordering::AcqRel,
        "SC" | "SCQ" => Ordering::SeqCst,
        other => panic!("no order {other}"),
    }
}

/// The order of the load that a failed compare-exchange is.
const FAILED: Ordering = Ordering::Relaxed;

fn evaluate(expr: &Value, registers: &Registers) -> u64 {
    match expr {
        Value::Number(number) => number.as_i64().unwrap().cast_unsigned(),
        Value::String(name) => registers.get(name).copied().unwrap_or(0),
        Value::Array(parts) => {
            let (left, right) = (evaluate(&parts[1], registers), evaluate(&parts[2], registers));
            match text(&parts[0]) {
                "==" => u64::from(left == right),
                "!=" => u64::from(left != right),
                "&&" => u64::from(left != 0 && right != 0),
                "||" => u64::from(left != 0 || right != 0),
                "+" => left.wrapping_add(right),
                "-" => left.wrapping_sub(right),
                "&" => left & right,
                "|" => left | right,
                other => panic!("no operator {other}"),
            }
        }
        other => panic!("no expression {other}"),
    }
}

/// How an await is written.
#[derive(Clone, Copy)]
pub(super) enum Waits {
    /// By [`wait_until`].
    Awaited,
    /// As a loop with a [`Backoff`].
    Looped,
}

fn wait(how: Waits, mut holds: impl FnMut() -> bool) {
    match how {
        Waits::Awaited => wait_until(holds),
        Waits::Looped => {
            let mut backoff = Backoff::new();
            while !holds() {
                backoff.wait();
            }
        }
    }
}

fn run(steps: &Value, memory: &Memory, waits: Waits, registers: &mut Registers) {
    for step in steps.as_array().unwrap() {
        let step = step.as_array().unwrap();
        let atomic = |place: &Value| match &memory[text(place)] {
            Place::Atomic(atomic) => atomic,
            Place::Plain(_) => panic!("{place} is not atomic"),
        };
        match text(&step[0]) {
            "load" => {
                let value = match &memory[text(&step[2])] {
                    Place::Plain(plain) => plain.get(),
                    Place::Atomic(atomic) => atomic.load(order(&step[3])),
                };
                registers.insert(text(&step[1]).to_owned(), value);
            }
            "store" => {
                let value = evaluate(&step[2], registers);
                match &memory[text(&step[1])] {
                    Place::Plain(plain) => plain.set(value),
                    Place::Atomic(atomic) => atomic.store(value, order(&step[3])),
                }
            }
            "rmw" => {
                let (operand, order) = (evaluate(&step[4], registers), order(&step[5]));
                let atomic = atomic(&step[2]);
                let old = match text(&step[3]) {
                    "xchg" => atomic.swap(operand, order),
                    "add" => atomic.fetch_add(operand, order),
                    "and" => atomic.fetch_and(operand, order),
                    "or" => atomic.fetch_or(operand, order),
                    other => panic!("no operator {other}"),
                };
                registers.insert(text(&step[1]).to_owned(), old);
            }
            "cas" => {
                let (current, new) = (evaluate(&step[3], registers), evaluate(&step[4], registers));
                let found = atomic(&step[2]).compare_exchange(current, new, order(&step[5]), FAILED);
                registers.insert(text(&step[1]).to_owned(), found.unwrap_or_else(|other| other));
            }
            "await" => {
                let (atomic, until, order) = (atomic(&step[1]), step[2].as_u64().unwrap(), order(&step[3]));
                match step[4].as_u64() {
                    None => wait(waits, || atomic.load(order) == until),
                    Some(then) => wait(waits, || atomic.compare_exchange(until, then, order, FAILED).is_ok()),
                }
            }
            "fence" => fence(order(&step[1])),
            "set" => {
                let value = evaluate(&step[2], registers);
                registers.insert(text(&step[1]).to_owned(), value);
            }
            "if" => run(&step[if evaluate(&step[1], registers) == 0 { 3 } else { 2 }], memory, waits, registers),
            "check" => assert!(evaluate(&step[1], registers) != 0, "{}", text(&step[2])),
            other => panic!("no step {other}"),
        }
    }
}

impl Case {
    pub(super) fn name(&self) -> &str {
        text(&self.0["name"])
    }

    /// What went wrong first, in the words of the other explorer, if anything did.
    pub(super) fn expected(&self) -> Option<&str> {
        self.0["bad"].as_str()
    }

    /// Complete and blocked executions; none where the search ends at a failure.
    pub(super) fn counts(&self) -> Option<(u64, u64)> {
        Some((self.0["executions"].as_u64()?, self.0["blocked"].as_u64()?))
    }

    /// Explores it; with the final states, memory and registers, and whether each is forbidden.
    pub(super) fn explore(&self, rules: Rules, waits: Waits) -> (Exploration, BTreeMap<Vec<(String, u64)>, bool>) {
        let all = Rc::new(RefCell::new(BTreeMap::new()));
        let found = Rc::clone(&all);
        let case = self.0.clone();
        let exploration = explore_by(rules, move || {
            let plain = case["plain"].as_array().unwrap();
            let names = case["places"].as_array().unwrap().iter();
            let place = |name: &Value| {
                let initial = case["initial"].get(text(name)).and_then(Value::as_u64).unwrap_or(0);
                let atomic = || Place::Atomic(AtomicU64::new(initial));
                (
                    text(name).to_owned(),
                    if plain.contains(name) { Place::Plain(PlainU64::new(initial)) } else { atomic() },
                )
            };
            let memory: Rc<Memory> = Rc::new(names.map(place).collect());
            let bodies = case["threads"].as_array().unwrap().clone();
            let results = Rc::new(RefCell::new(vec![Registers::new(); bodies.len()]));
            let bind = |(number, body): (usize, Value)| -> Box<dyn Fn()> {
                let (memory, results) = (Rc::clone(&memory), Rc::clone(&results));
                Box::new(move || {
                    let mut registers = Registers::new();
                    run(&body, &memory, waits, &mut registers);
                    results.borrow_mut()[number] = registers;
                })
            };
            let threads = bodies.into_iter().enumerate().map(bind).collect();
            let exists = case["exists"].clone();
            Program::new(threads, move || {
                let mut all = Registers::new();
                for (name, place) in &*memory {
                    let value = match place {
                        Place::Atomic(atomic) => atomic.load(Ordering::Relaxed),
                        Place::Plain(plain) => plain.get(),
                    };
                    all.insert(name.clone(), value);
                }
                for (number, registers) in results.borrow().iter().enumerate() {
                    all.extend(registers.iter().map(|(name, &value)| (format!("{number}:{name}"), value)));
                }
                let forbidden = !exists.is_null() && evaluate(&exists, &all) != 0;
                let mut all: Vec<_> = all.into_iter().collect();
                all.sort_unstable();
                found.borrow_mut().insert(all, forbidden);
            })
        });
        let all = all.borrow().clone();
        (exploration, all)
    }

    pub(super) fn waits(&self) -> bool {
        self.0["threads"].to_string().contains("[\"await\"")
    }
}
