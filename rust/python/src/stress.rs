//! The stress: its configuration from keywords, its report as a dictionary.

use core::time::Duration;

use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict, PyList},
};
use shadow_mmu::{
    error::Result as CoreResult,
    op::{Op, OutcomeRecord},
    stress::{Figures, Interleaving, Limit, Rates, Record, StressConfig, StressReport},
};

use crate::{convert::Word, report};

/// Keywords of `Vm.stress`; what is left out is the core's default.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Keywords {
    seed: Word,
    seconds: Option<f64>,
    steps: Option<Word>,
    audit_every: Word,
    turns: bool,
    patience: f64,
    keep_going: bool,
    rates: Vec<(String, u32)>,
}

impl Keywords {
    pub(crate) fn config(&self) -> CoreResult<StressConfig> {
        let mut rates = Rates::default();
        for (name, rate) in &self.rates {
            rates.set(name, *rate)?;
        }
        let default = StressConfig::default();
        let limit = match (self.seconds, self.steps) {
            (_, Some(steps)) => Limit::Steps(steps.0),
            (Some(seconds), None) => Limit::Seconds(seconds),
            (None, None) => default.limit,
        };
        Ok(StressConfig {
            seed: self.seed.0,
            limit,
            audit_every: self.audit_every.0,
            rates,
            interleaving: if self.turns { Interleaving::Turns } else { Interleaving::Threads },
            // What is no duration is none that the core accepts.
            patience: Duration::try_from_secs_f64(self.patience).unwrap_or_default(),
            keep_going: self.keep_going,
        })
    }
}

fn figures<'py>(py: Python<'py>, figures: &Figures) -> PyResult<Bound<'py, PyDict>> {
    report::named(py, Figures::NAMES, &figures.values())
}

fn bytes<'py, T: bytemuck::NoUninit>(py: Python<'py>, records: &[T]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, bytemuck::cast_slice(records))
}

/// What a run did and found.
pub(crate) fn report<'py>(py: Python<'py>, found: &StressReport, interrupted: bool) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("seconds", found.seconds)?;
    dict.set_item("interrupted", interrupted)?;
    dict.set_item("figures", figures(py, &found.figures)?)?;
    let per_vcpu = found.per_vcpu.iter().map(|one| figures(py, one)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("per_vcpu", per_vcpu)?;
    dict.set_item("audits", found.audits)?;
    let findings = found.findings.iter().map(|one| (one.vcpu, one.what, one.text.as_str()));
    dict.set_item("findings", PyList::new(py, findings.collect::<Vec<_>>())?)?;
    dict.set_item("finding_count", found.finding_count)?;
    dict.set_item("longest_hold_ns", found.longest_hold)?;
    dict.set_item("stats", report::stats(py, &found.stats)?)?;
    let tails = found.tails.iter().map(|tail| {
        let (ops, outcomes): (Vec<Op>, Vec<OutcomeRecord>) = tail.iter().copied().unzip();
        (bytes(py, &ops), bytes(py, &outcomes))
    });
    dict.set_item("tails", PyList::new(py, tails.collect::<Vec<_>>())?)?;
    dict.set_item("roots", &found.roots)?;
    dict.set_item("record", found.record.as_ref().map(|record| written(py, record)))?;
    Ok(dict)
}

/// A run in turns: operations, outcomes, pages, and pairs of an operation's index and a page that it might reach.
fn written<'py>(
    py: Python<'py>,
    record: &Record,
) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
    let legal: Vec<u64> = record.legal.iter().flat_map(|&(index, page)| [index, page]).collect();
    (bytes(py, &record.ops), bytes(py, &record.outcomes), bytes(py, &record.pages), bytes(py, &legal))
}
