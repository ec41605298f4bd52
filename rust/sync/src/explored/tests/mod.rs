//! The checker against the textbooks, against the other explorer of this project, and against itself with a rule broken.

mod by_hand;
mod litmus;
mod locks;
mod programs;
mod refusals;
mod waiting;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::{Exploration, Program, Rules, search::explore_by};

/// Explores threads over a state to the end; what they return is collected, with how many executions return it.
fn outcomes<S: 'static, const N: usize>(
    state: fn() -> S,
    threads: [fn(&S) -> u64; N],
) -> (Exploration, BTreeMap<[u64; N], u64>) {
    outcomes_by(Rules::RC11, state, threads)
}

fn outcomes_by<S: 'static, const N: usize>(
    rules: Rules,
    state: fn() -> S,
    threads: [fn(&S) -> u64; N],
) -> (Exploration, BTreeMap<[u64; N], u64>) {
    let all = Rc::new(RefCell::new(BTreeMap::new()));
    let collect = Rc::clone(&all);
    let found = explore_by(rules, move || {
        let state = Rc::new(state());
        let results = Rc::new(RefCell::new([0; N]));
        let bind = |(number, thread): (usize, fn(&S) -> u64)| -> Box<dyn Fn()> {
            let (state, results) = (Rc::clone(&state), Rc::clone(&results));
            Box::new(move || {
                let result = thread(&state);
                results.borrow_mut()[number] = result;
            })
        };
        let threads = threads.into_iter().enumerate().map(bind).collect();
        Program::new(threads, move || *collect.borrow_mut().entry(*results.borrow()).or_insert(0) += 1)
    });
    let all = all.borrow().clone();
    (found, all)
}
