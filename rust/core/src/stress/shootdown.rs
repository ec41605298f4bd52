//! TLB shoot-downs as a guest does them: the entry is changed, a word in guest memory says so, every other vCPU reads it,
//! invalidates, and acknowledges by a word of its own. After the last acknowledgement nobody may use the old translation.

use super::{
    actor::Actor,
    guest::{ALIAS, DIRECT},
};
use crate::{
    error::Result,
    op::{Op, OpKind, Outcome},
    vm::Cpu,
};

/// What to invalidate: everything, or the page whose address it is.
const EVERYTHING: u64 = 1;

/// This vCPU's shoot-downs: one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ShootDown {
    number: u64,
    /// The first vCPU that has not acknowledged; past the last: none is under way.
    waiting: Option<usize>,
    /// The table that becomes data when all have acknowledged.
    then: Option<usize>,
}

impl ShootDown {
    pub(super) fn is_pending(self) -> bool {
        self.waiting.is_some()
    }
}

impl Actor<'_> {
    /// Loads a word of memory through one of the kernel's windows.
    pub(super) fn window_load(&mut self, cpu: &mut Cpu<'_>, gpa: u64) -> Result<u64> {
        let op = Op { aux: 8, ..Op::new(OpKind::Load, self.window() + gpa) };
        Ok(match self.execute(cpu, op, &[])? {
            Outcome::Ok(value) => value,
            outcome => {
                self.report("window", format!("{op:x?} came to {outcome:x?}: the windows never change"));
                0
            }
        })
    }

    /// Stores through one of the kernel's windows.
    pub(super) fn window_store(&mut self, cpu: &mut Cpu<'_>, gpa: u64, value: u64, size: u32) -> Result<()> {
        let op = Op { aux: size, value, ..Op::new(OpKind::Store, self.window() + gpa) };
        let outcome = self.execute(cpu, op, &[])?;
        self.expect("window", &op, outcome, Outcome::Ok(gpa));
        Ok(())
    }

    fn window(&mut self) -> u64 {
        if self.rng.bool() { DIRECT } else { ALIAS }
    }

    /// Tells the others to invalidate a page, or everything; does so itself.
    pub(super) fn shoot_down(&mut self, cpu: &mut Cpu<'_>, gva: Option<u64>, then: Option<usize>) -> Result<()> {
        let signal = self.guest.signal(self.vcpu);
        let number = self.shoot_down.number + 1;
        self.shoot_down = ShootDown { number, waiting: Some(0), then };
        self.looks = 0;
        self.window_store(cpu, signal + 8, gva.unwrap_or(EVERYTHING), 8)?;
        self.window_store(cpu, signal, number, 8)?;
        match gva {
            Some(gva) => self.invlpg(cpu, gva),
            None => self.reload_cr3(cpu),
        }
    }

    /// Serves the shoot-downs of the others. Under a root of the kernel.
    pub(super) fn serve_signals(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        for initiator in 0..self.guest.vcpus {
            if initiator == self.vcpu {
                continue;
            }
            let signal = self.guest.signal(initiator);
            let number = self.window_load(cpu, signal)?;
            if number != self.served[initiator] {
                match self.window_load(cpu, signal + 8)? {
                    EVERYTHING => self.reload_cr3(cpu)?,
                    gva => {
                        self.invlpg(cpu, gva)?;
                        self.touch_again(cpu, gva)?;
                    }
                }
                self.served[initiator] = number;
                self.window_store(cpu, self.guest.acknowledgement(initiator, self.vcpu), number, 8)?;
            }
        }
        Ok(())
    }

    /// Looks whether all have acknowledged; goes on with what waited for it.
    pub(super) fn look_for_acknowledgements(&mut self, cpu: &mut Cpu<'_>) -> Result<bool> {
        let ShootDown { number, waiting, then } = self.shoot_down;
        let mut next = waiting.unwrap_or(0);
        while next < self.guest.vcpus {
            let word = self.guest.acknowledgement(self.vcpu, next);
            if next != self.vcpu && self.window_load(cpu, word)? != number {
                self.shoot_down.waiting = Some(next);
                return Ok(false);
            }
            next += 1;
        }
        self.shoot_down = ShootDown { number, waiting: None, then: None };
        self.figures.shoot_downs += 1;
        if let Some(table) = then {
            self.table_is_data(table);
        }
        Ok(true)
    }
}
