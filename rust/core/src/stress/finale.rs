//! The end of a run, all vCPUs at rest: memory against what each word's last writer stored, the audit, and every page of every
//! root translated once more.

use super::{Record, StressReport, actor::Actor, guest::Guest, guest::SIGNATURE_WORD, history::ACCESSED_DIRTY};
use crate::{
    addr::Gpa,
    error::Result,
    run::Control,
    vm::{Cpu, Vm},
};

impl StressReport {
    /// Audits the machine, the caller having every vCPU.
    pub(super) fn audited(&mut self, vm: &Vm, cpus: &[Cpu<'_>], control: &Control) {
        let violations = vm.audit_with(cpus, &|| control.stopped());
        self.audits += u64::from(!control.stopped());
        for violation in violations {
            self.find("audit", violation.to_string());
        }
    }
}

pub(super) fn check(
    vm: &Vm,
    guest: &Guest,
    actors: &mut [Actor<'_>],
    cpus: &mut [Cpu<'_>],
    report: &mut StressReport,
    mut record: Option<&mut Record>,
    control: &Control,
) -> Result<()> {
    report.audited(vm, cpus, control);
    check_memory(vm, guest, actors, report)?;
    if report.interrupted {
        return Ok(());
    }
    for (actor, cpu) in actors.iter_mut().zip(cpus.iter_mut()) {
        let swept = actor.sweep(cpu);
        actor.note_no_progress(swept)?;
        if let (Some(record), Some(own)) = (&mut record, &mut actor.record) {
            record.append(own);
        }
    }
    report.audited(vm, cpus, control);
    Ok(())
}

fn word(vm: &Vm, gpa: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    vm.host_read(Gpa::new(gpa), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn check_memory(vm: &Vm, guest: &Guest, actors: &[Actor<'_>], report: &mut StressReport) -> Result<()> {
    for actor in actors {
        for (gpa, stored) in actor.words_stored() {
            let found = word(vm, gpa)?;
            if found != stored {
                report.find("memory", format!("{gpa:#x}: vCPU {} stored {stored:#x}, found {found:#x}", actor.vcpu));
            }
        }
    }
    for &frame in &guest.frames {
        let found = word(vm, frame + SIGNATURE_WORD * 8)?;
        if found != Guest::signature(frame) {
            report.find("memory", format!("the signature of the frame at {frame:#x} is {found:#x}"));
        }
    }
    let mut expected: Vec<u64> = guest.words.iter().map(|&word| guest.log(word).newest()).collect();
    let mut exact = vec![false; expected.len()];
    for (actor, estate) in actors.iter().zip(&guest.estates) {
        for (reuse, chameleon) in actor.reuse.iter().zip(&estate.chameleons) {
            for (&word, &data) in chameleon.words.iter().zip(reuse.data().unwrap_or_default()) {
                // A word of a table that became data and was not stored to since holds its last entry.
                if data != u64::MAX {
                    expected[word.log as usize] = data;
                    exact[word.log as usize] = true;
                }
            }
        }
    }
    for &entry in &guest.words {
        let (stored, found) = (expected[entry.log as usize], word(vm, entry.gpa)?);
        let ignored = if exact[entry.log as usize] { 0 } else { ACCESSED_DIRTY };
        if (found ^ stored) & !ignored != 0 {
            report.find("memory", format!("the entry at {:#x}: stored {stored:#x}, found {found:#x}", entry.gpa));
        }
    }
    Ok(())
}
