//! Who goes on: at random, by priorities that change a few times (PCT), or as it was recorded.

use std::collections::VecDeque;

use fastrand::Rng;

use super::At;

/// The thread of a choice that was made before any thread ran.
const START: u16 = u16::MAX;

/// At its own point number `point`, `thread` was followed by `to`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Choice {
    /// Who was running.
    pub thread: u16,
    /// At which of its own points.
    pub point: u64,
    /// Who went on.
    pub to: u16,
}

/// How threads are chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// At one point in so many, any thread; at a wait any other.
    Random {
        /// Of the choices.
        seed: u64,
        /// Points for each choice, on average.
        one_in: u32,
    },
    /// Priorities drawn at the start; at so many points, drawn from the first `length`, the running thread becomes the least.
    /// Finds any bug that needs so many ordering constraints with a known chance (Burckhardt et al., ASPLOS 2010).
    Pct {
        /// Of priorities and change points.
        seed: u64,
        /// Change points.
        changes: u32,
        /// Points among which they are drawn.
        length: u64,
    },
    /// These choices, and the default everywhere else.
    Replay(Vec<Choice>),
}

#[derive(Debug)]
enum Mode {
    Random { rng: Rng, one_in: u32 },
    Pct { priorities: Vec<i64>, changes: Vec<u64>, lowest: i64, done: u64 },
    Replay { queues: Vec<VecDeque<Choice>>, first: usize },
}

/// Chooses, and remembers what it chose.
#[derive(Debug)]
pub(super) struct Chooser {
    mode: Mode,
    choices: Vec<Choice>,
    diverged: Option<Choice>,
    threads: usize,
}

impl Chooser {
    pub(super) fn new(threads: usize, strategy: &Strategy) -> Self {
        let mode = match *strategy {
            Strategy::Random { seed, one_in } => Mode::Random { rng: Rng::with_seed(seed), one_in: one_in.max(1) },
            Strategy::Pct { seed, changes, length } => {
                let mut rng = Rng::with_seed(seed);
                let mut priorities: Vec<i64> = (1..).take(threads).collect();
                rng.shuffle(&mut priorities);
                let mut changes: Vec<u64> = (0..changes).map(|_| rng.u64(1..=length.max(1))).collect();
                changes.sort_unstable_by(|a, b| b.cmp(a));
                Mode::Pct { priorities, changes, lowest: 0, done: 0 }
            }
            Strategy::Replay(ref choices) => {
                let mut queues = vec![VecDeque::new(); threads];
                let mut first = 0;
                for &choice in choices {
                    if choice.thread == START {
                        first = usize::from(choice.to).min(threads - 1);
                    } else if let Some(queue) = queues.get_mut(usize::from(choice.thread)) {
                        queue.push_back(choice);
                    }
                }
                Mode::Replay { queues, first }
            }
        };
        Self { mode, choices: Vec::new(), diverged: None, threads }
    }

    pub(super) fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The first choice of a replay that could not be made.
    pub(super) fn diverged(&self) -> Option<Choice> {
        let left = match &self.mode {
            Mode::Replay { queues, .. } => queues.iter().find_map(|queue| queue.front().copied()),
            Mode::Random { .. } | Mode::Pct { .. } => None,
        };
        self.diverged.or(left)
    }

    /// Who runs first.
    pub(super) fn first(&mut self) -> usize {
        let first = match &mut self.mode {
            Mode::Random { rng, .. } => rng.usize(..self.threads),
            Mode::Pct { priorities, .. } => highest(priorities, &vec![true; self.threads]).unwrap_or(0),
            Mode::Replay { first, .. } => *first,
        };
        if first != 0 {
            self.choices.push(Choice { thread: START, point: 0, to: first as u16 });
        }
        first
    }

    /// Who goes on after `thread` at its point; nobody if no thread is left.
    pub(super) fn choose(&mut self, thread: usize, point: u64, at: At, alive: &[bool]) -> Option<usize> {
        let next = (1..=self.threads).map(|by| (thread + by) % self.threads).find(|&other| alive[other])?;
        let default = if at == At::Point { thread } else { next };
        let chosen = match &mut self.mode {
            Mode::Random { rng, one_in } => {
                if at == At::Point && rng.u32(..*one_in) != 0 {
                    thread
                } else {
                    let others = |other: &usize| alive[*other] && (at == At::Point || *other != thread);
                    let count = (0..self.threads).filter(others).count();
                    // Alone, a thread waits for itself.
                    if count == 0 {
                        next
                    } else {
                        (0..self.threads).filter(others).nth(rng.usize(..count)).unwrap_or(next)
                    }
                }
            }
            Mode::Pct { priorities, changes, lowest, done } => {
                *done += 1;
                let mut demote = at == At::Wait;
                while changes.last().is_some_and(|&change| change <= *done) {
                    changes.pop();
                    demote = true;
                }
                if demote {
                    *lowest -= 1;
                    priorities[thread] = *lowest;
                }
                highest(priorities, alive).unwrap_or(default)
            }
            Mode::Replay { queues, .. } => match queues[thread].front().copied() {
                Some(choice) if choice.point == point => {
                    queues[thread].pop_front();
                    let to = usize::from(choice.to);
                    if alive.get(to) == Some(&true) {
                        to
                    } else {
                        self.diverged.get_or_insert(choice);
                        default
                    }
                }
                _ => default,
            },
        };
        if chosen != default {
            self.choices.push(Choice { thread: thread as u16, point, to: chosen as u16 });
        }
        Some(chosen)
    }
}

fn highest(priorities: &[i64], alive: &[bool]) -> Option<usize> {
    (0..priorities.len()).filter(|&thread| alive[thread]).max_by_key(|&thread| priorities[thread])
}
