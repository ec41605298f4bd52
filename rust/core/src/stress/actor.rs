//! One vCPU's part of the stress: which operation comes next, and the judgement of each access.
//!
//! An actor never waits: it does a few operations at a step, and what it waits for it looks at in a later step. So the same
//! actors run on threads of their own, or in turns on one thread.

use fastrand::Rng;
use rustc_hash::FxHashMap;

use super::{
    config::{Draw, Rates},
    figures::{Figures, Finding, Tail},
    guest::Guest,
    history::{Clock, Known},
    record::Record,
    reuse::Reuse,
    shootdown::ShootDown,
};
use crate::{
    addr::PAGE_SIZE,
    error::{Error, Result},
    op::{Op, OpKind, Outcome},
    regs::{CR0_WP, CR4_PGE, CR4_SMEP, EFER_NXE},
    sync::yield_now,
    vm::{Cpu, PageWords},
};

/// Tries of one access without anybody's progress that are a violation (R11).
pub const MAX_RETRIES: u64 = 16;
/// Findings that an actor keeps; all are counted.
const KEPT_FINDINGS: usize = 20;
/// Looks for acknowledgements before a vCPU gives its core away.
const PATIENT_LOOKS: u32 = 8;
/// Steps in user mode after which the kernel looks for signals.
const USER_STEPS: u32 = 24;

/// What all actors share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage<'a> {
    pub(super) guest: &'a Guest,
    pub(super) clock: &'a Clock,
    pub(super) rates: &'a Rates,
}

/// One vCPU's part.
#[derive(Debug)]
pub(super) struct Actor<'a> {
    pub(super) vcpu: usize,
    pub(super) guest: &'a Guest,
    pub(super) clock: &'a Clock,
    rates: &'a Rates,
    pub(super) rng: Rng,
    pub(super) process: usize,
    pub(super) in_kernel: bool,
    steps_in_mode: u32,
    /// Edits of table words begun by this vCPU.
    pub(super) edits: u64,
    steps: u64,
    /// What was known when everything was last invalidated, and pages invalidated since then.
    pub(super) base: Known,
    pub(super) pages: FxHashMap<u64, (u64, Known)>,
    pub(super) generation: u64,
    /// What was known when the access at hand began.
    pub(super) start: Known,
    /// The last value that this vCPU stored to each of its words, by frame and word.
    pub(super) last: Vec<u64>,
    pub(super) stored: u64,
    /// The last shoot-down of each other vCPU that was served.
    pub(super) served: Vec<u64>,
    pub(super) shoot_down: ShootDown,
    pub(super) reuse: Vec<Reuse>,
    /// Looks for the acknowledgements of the shoot-down under way.
    pub(super) looks: u32,
    pub(super) figures: Figures,
    pub(super) findings: Vec<Finding>,
    pub(super) tail: Tail,
    pub(super) record: Option<Record>,
}

impl<'a> Actor<'a> {
    pub(super) fn new(stage: Stage<'a>, vcpu: usize, seed: u64, record: bool) -> Self {
        let Stage { guest, clock, rates } = stage;
        // Streams of neighbouring seeds and vCPUs have nothing in common: the seed is hashed first.
        let mut mixer = Rng::with_seed(seed);
        let rng = Rng::with_seed(mixer.u64(..) ^ (vcpu as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            vcpu,
            guest,
            clock,
            rates,
            rng,
            process: vcpu % guest.processes.len(),
            in_kernel: false,
            steps_in_mode: 0,
            edits: 0,
            steps: 0,
            base: clock.nothing(),
            pages: FxHashMap::default(),
            generation: 0,
            start: clock.nothing(),
            last: vec![0; guest.frames.len() * guest.own_words],
            stored: 0,
            served: vec![0; guest.vcpus],
            shoot_down: ShootDown::default(),
            reuse: guest.estates[vcpu].chameleons.iter().map(|chameleon| Reuse::new(chameleon.words.len())).collect(),
            looks: 0,
            figures: Figures::default(),
            findings: Vec::new(),
            tail: Tail::default(),
            record: record.then(Record::default),
        }
    }

    // ------------------------------------------------------------------------------------- what comes next

    /// Brings the vCPU's registers to their start.
    ///
    /// # Errors
    /// Those of the machine, as of every function here.
    pub(super) fn begin(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        self.enter_kernel(cpu, true)
    }

    /// A few operations.
    pub(super) fn step(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        self.steps_in_mode += 1;
        if self.shoot_down.is_pending() {
            self.enter_kernel(cpu, false)?;
            self.serve_signals(cpu)?;
            if !self.look_for_acknowledgements(cpu)? {
                // Whoever waits does something else meanwhile, and lets those run whom it waits for.
                self.looks += 1;
                if self.looks > PATIENT_LOOKS {
                    yield_now();
                }
                self.touch(cpu)?;
            }
            return Ok(());
        }
        if cpu.regs().efer & EFER_NXE == 0 && self.rng.u8(..) < 24 {
            // Without it the user half of the kernel's root has reserved bits, and nothing but that would be seen.
            return self.flush_with(cpu, OpKind::WriteEfer, cpu.regs().efer | EFER_NXE);
        }
        if self.rng.u8(..) == 0 {
            // Another thread's turn in the middle of what this vCPU is at.
            yield_now();
        }
        if self.in_kernel && self.rng.u8(..) < 64 {
            self.serve_signals(cpu)?;
        }
        if !self.in_kernel && self.steps_in_mode > USER_STEPS {
            self.enter_kernel(cpu, false)?;
            return self.serve_signals(cpu);
        }
        match self.rates.draw(&mut self.rng) {
            Draw::Access => self.touch(cpu),
            Draw::Switch => self.switch(cpu),
            action => {
                self.enter_kernel(cpu, false)?;
                match action {
                    Draw::Leaf => self.edit_leaf(cpu),
                    Draw::Branch => self.edit_branch(cpu),
                    Draw::Reuse => self.advance_reuse(cpu),
                    Draw::Invlpg => {
                        let gva = self.some_page();
                        self.invlpg(cpu, gva)?;
                        self.touch_again(cpu, gva)
                    }
                    Draw::Reload => self.reload_cr3(cpu),
                    Draw::Zap => self.zap(cpu),
                    Draw::Registers => self.toggle_register(cpu),
                    Draw::Access | Draw::Switch => Ok(()),
                }
            }
        }
    }

    /// A step of a vCPU that begins nothing more, and still serves the others; whether it waits for nobody.
    pub(super) fn drain(&mut self, cpu: &mut Cpu<'_>) -> Result<bool> {
        self.enter_kernel(cpu, false)?;
        self.serve_signals(cpu)?;
        let idle = !self.shoot_down.is_pending() || self.look_for_acknowledgements(cpu)?;
        yield_now();
        Ok(idle)
    }

    pub(super) fn some_page(&mut self) -> u64 {
        let pages = &self.guest.processes[self.process].pages;
        // Half of all accesses go to a few pages, and to others after a while: only where vCPUs meet is there a race.
        let at = if self.rng.bool() {
            (self.figures.operations as usize >> 14) * 3 + self.rng.usize(..4)
        } else {
            self.rng.usize(..)
        };
        pages[at % pages.len()]
    }

    // ------------------------------------------------------------------------------------------ operations

    /// Carries an operation out, counts it, and keeps it in the tail.
    pub(super) fn execute(&mut self, cpu: &mut Cpu<'_>, op: Op, pages: &[PageWords]) -> Result<Outcome> {
        let op = Op { vcpu: self.vcpu as u16, ..op };
        self.steps += 1;
        self.clock.step(self.vcpu, self.steps, op.kind);
        cpu.forget_tries();
        let result = cpu.execute(&op, pages);
        self.steps += 1;
        self.clock.step(self.vcpu, self.steps, op.kind);
        let outcome = result?;
        self.figures.operations += 1;
        self.tail.push(op, outcome);
        if let Some(record) = &mut self.record {
            record.push(op, outcome, pages);
        }
        let tries = u64::from(cpu.tries());
        if tries > self.figures.max_tries {
            self.figures.max_tries = tries;
        }
        if tries > self.figures.max_retries {
            self.count_retries(&op, tries);
        }
        Ok(outcome)
    }

    /// Every operation that another vCPU began or ended meanwhile is a reason for one retry.
    pub(super) fn count_retries(&mut self, op: &Op, tries: u64) {
        let progress = self.clock.steps_of_others(self.vcpu).saturating_sub(self.start.steps_of_others);
        let retries = tries.saturating_sub(progress);
        if retries > self.figures.max_retries {
            self.figures.max_retries = retries;
            if retries > MAX_RETRIES {
                let text = format!("{op:x?} was tried {tries} times while the others made {progress} steps");
                self.report("liveness", text);
            }
        }
    }

    /// Takes note of a violation.
    pub(super) fn report(&mut self, what: &'static str, text: String) {
        self.figures.violations += 1;
        if self.findings.len() < KEPT_FINDINGS {
            self.findings.push(Finding { vcpu: Some(self.vcpu), what, text });
        }
    }

    /// An access that was given up is a violation, not the end of the report.
    ///
    /// # Errors
    /// Any other error.
    pub(super) fn note_no_progress(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error @ Error::NoProgress { .. }) => {
                self.report("liveness", error.to_string());
                Ok(())
            }
            other => other,
        }
    }

    /// Takes note of an outcome that is not the only right one.
    pub(super) fn expect(&mut self, what: &'static str, op: &Op, outcome: Outcome, right: Outcome) {
        if outcome != right {
            self.report(what, format!("{op:x?} came to {outcome:x?}, expected {right:x?}"));
        }
    }

    // --------------------------------------------------------------------------------------- invalidations

    /// An operation that invalidates everything.
    pub(super) fn flush_with(&mut self, cpu: &mut Cpu<'_>, kind: OpKind, value: u64) -> Result<()> {
        self.clock.learn(self.vcpu, &mut self.start);
        self.base.clone_from(&self.start);
        self.generation += 1;
        self.write_register(cpu, kind, value)
    }

    fn write_register(&mut self, cpu: &mut Cpu<'_>, kind: OpKind, value: u64) -> Result<()> {
        let op = Op::new(kind, value);
        let outcome = self.execute(cpu, op, &[])?;
        self.expect("register write", &op, outcome, Outcome::Ok(0));
        Ok(())
    }

    /// Writes the CR3 of the kernel's root, if another is loaded or `always`.
    fn enter_kernel(&mut self, cpu: &mut Cpu<'_>, always: bool) -> Result<()> {
        if self.in_kernel && !always {
            return Ok(());
        }
        self.in_kernel = true;
        self.steps_in_mode = 0;
        self.figures.switches += 1;
        self.flush_with(cpu, OpKind::WriteCr3, self.guest.processes[self.process].kernel)
    }

    /// To the user's root; now and then of another process.
    fn switch(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        if self.rng.u8(..) < 80 {
            let shared = self.guest.processes.len() - self.guest.vcpus;
            // The shared ones, the own one, seldom another's.
            self.process = match self.rng.u8(..8) {
                0..4 => self.rng.usize(..shared),
                4..7 => shared + self.vcpu,
                _ => self.rng.usize(..self.guest.processes.len()),
            };
            self.enter_kernel(cpu, true)?;
        }
        self.in_kernel = !self.in_kernel;
        self.steps_in_mode = 0;
        self.figures.switches += 1;
        let process = &self.guest.processes[self.process];
        let value = if self.in_kernel { process.kernel } else { process.user };
        self.flush_with(cpu, OpKind::WriteCr3, value)
    }

    /// Writes CR3 with the value that it has.
    pub(super) fn reload_cr3(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        self.flush_with(cpu, OpKind::WriteCr3, cpu.regs().cr3)
    }

    pub(super) fn invlpg(&mut self, cpu: &mut Cpu<'_>, gva: u64) -> Result<()> {
        self.clock.learn(self.vcpu, &mut self.start);
        self.invalidated(gva);
        let op = Op::new(OpKind::Invlpg, gva);
        let outcome = self.execute(cpu, op, &[])?;
        self.expect("INVLPG", &op, outcome, Outcome::Ok(0));
        Ok(())
    }

    /// The page was invalidated when what `start` says was known.
    pub(super) fn invalidated(&mut self, gva: u64) {
        match self.pages.entry(gva / PAGE_SIZE) {
            std::collections::hash_map::Entry::Occupied(mut page) => {
                let (generation, known) = page.get_mut();
                *generation = self.generation;
                known.clone_from(&self.start);
            }
            std::collections::hash_map::Entry::Vacant(page) => {
                page.insert((self.generation, self.start.clone()));
            }
        }
    }

    /// CR0.WP, CR4.SMEP, CR4.PGE or EFER.NXE.
    fn toggle_register(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        let regs = *cpu.regs();
        let (kind, value) = match self.rng.u8(..4) {
            0 => (OpKind::WriteCr0, regs.cr0 ^ CR0_WP),
            1 => (OpKind::WriteCr4, regs.cr4 ^ CR4_SMEP),
            2 => (OpKind::WriteCr4, regs.cr4 ^ CR4_PGE),
            _ => (OpKind::WriteEfer, regs.efer ^ EFER_NXE),
        };
        self.figures.register_writes += 1;
        // Where the hardware walks the guest's tables, CR0.WP alone may leave the TLB as it is (docs/machine.md, 15).
        if cpu.is_tdp() && kind == OpKind::WriteCr0 {
            return self.write_register(cpu, kind, value);
        }
        self.flush_with(cpu, kind, value)
    }

    /// The host zaps the shadow pages of some table, or of a root.
    fn zap(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        let table = self.guest.tables[self.rng.usize(..self.guest.tables.len())];
        let op = Op::new(OpKind::ZapGfn, table / PAGE_SIZE);
        self.figures.host_operations += 1;
        let outcome = self.execute(cpu, op, &[])?;
        self.expect("zap", &op, outcome, Outcome::Ok(0));
        Ok(())
    }
}
