//! `Vcpu.translate_many`: an array of addresses in, arrays of gpas and error codes out.

use core::{cell::Cell, time::Duration};
use std::time::Instant;

use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::{buffer::PyUntypedBuffer, prelude::*, sync::PyOnceLock, types::PyTuple};
use shadow_mmu::{AccessFlags, AccessKind, Cpu, Gva, Outcome, TranslateError, Translation, Translator};

use crate::{errors, machine::Machine};

/// Addresses from which on the interpreter is released: less than it costs to get it back is not worth it.
const MANY: usize = 1024;
/// How long the interpreter is released before signals are looked for.
const TICK: Duration = Duration::from_millis(50);
/// Addresses between two looks at the clock, and the most of one batch: what they share may be read once for all of them.
const PIECE: usize = 1 << 16;

/// `error` of an address that is translated, and of one that is not canonical; others have the page fault's code.
const TRANSLATED: i32 = -1;
const NOT_CANONICAL: i32 = -2;

/// The translation of one address as the outcome of an access.
pub(crate) fn outcome(cpu: &Cpu<'_>, gva: Gva, found: Translation) -> Outcome {
    match found {
        Ok(gpa) => Outcome::Ok(gpa.get()),
        Err(TranslateError::NotCanonical) => Outcome::GeneralProtection,
        Err(TranslateError::PageFault(code)) => Outcome::PageFault { address: cpu.regs().mode().linear(gva), code },
    }
}

/// `as_addresses` and `of_arrays` of `shadow_mmu.translations`.
static CONVERT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static TRANSLATIONS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Addresses in C order, a copy that no other thread can change; and their shape, `None` in one dimension.
type Addresses = (Vec<u64>, Option<Vec<usize>>);

/// The addresses in a buffer that holds them as they are; others are `None`.
fn words(py: Python<'_>, buffer: PyUntypedBuffer) -> PyResult<Option<Addresses>> {
    let dimensions = buffer.dimensions();
    if dimensions == 0 {
        return Ok(None);
    }
    let shape = (dimensions != 1).then(|| buffer.shape().to_vec());
    if buffer.shape().contains(&0) {
        return Ok(Some((Vec::new(), shape)));
    }
    // PyO3 takes words of the other byte order for its own.
    if buffer.format().to_bytes().starts_with(b">") {
        return Ok(None);
    }
    buffer.into_typed::<u64>().ok().map(|words| Ok((words.to_vec(py)?, shape))).transpose()
}

/// The addresses, converted if they are not words yet.
fn addresses(gvas: &Bound<'_, PyAny>) -> PyResult<Addresses> {
    let py = gvas.py();
    // The usual one: numpy's own, which needs no buffer.
    if let Some(words) = gvas.cast::<PyArray1<u64>>().ok().and_then(|array| array.to_vec().ok()) {
        return Ok((words, None));
    }
    if let Ok(buffer) = PyUntypedBuffer::get(gvas)
        && let Some(found) = words(py, buffer)?
    {
        return Ok(found);
    }
    let made = CONVERT.import(py, "shadow_mmu.translations", "as_addresses")?.call1((gvas,))?;
    words(py, PyUntypedBuffer::get(&made)?)?
        .ok_or_else(|| errors::layout(py, format!("gvas: got {made}, expected words")))
}

/// Translates addresses on a vCPU that is kept meanwhile; the interpreter is released if they are many.
pub(crate) fn many<'py>(
    py: Python<'py>,
    machine: &Machine,
    index: usize,
    gvas: &Bound<'py, PyAny>,
    kind: AccessKind,
    flags: AccessFlags,
) -> PyResult<Bound<'py, PyAny>> {
    let (mut words, shape) = addresses(gvas)?;
    let mut errors = vec![TRANSLATED; words.len()];
    machine.core(py, |vm| {
        let cpu = vm.cpu(index)?;
        Ok(in_pieces(py, machine, &cpu.translator(kind, flags), &mut words, &mut errors))
    })??;
    let made = TRANSLATIONS.import(py, "shadow_mmu.translations", "of_arrays")?;
    let (gpa, error) = (array(py, words), array(py, errors));
    match shape {
        None => made.call1((gpa, error)),
        Some(shape) => made.call1((gpa, error, PyTuple::new(py, shape)?)),
    }
}

/// An array of numpy that cannot be written.
fn array<T: Element + Copy>(py: Python<'_>, values: Vec<T>) -> Bound<'_, PyArray1<T>> {
    // The memory of many is taken over, that of a few is sooner copied.
    let made = if values.len() < MANY { PyArray1::from_slice(py, &values) } else { values.into_pyarray(py) };
    made.readwrite().make_nonwriteable();
    made
}

/// Translates in place, with a look for signals now and then.
fn in_pieces(
    py: Python<'_>,
    machine: &Machine,
    translator: &Translator<'_>,
    words: &mut [u64],
    errors: &mut [i32],
) -> PyResult<()> {
    if words.len() < MANY {
        piece(translator, words, errors);
        return Ok(());
    }
    let mut pieces = words.chunks_mut(PIECE).zip(errors.chunks_mut(PIECE));
    loop {
        let left;
        (pieces, left) = py.detach(move || {
            let began = Instant::now();
            while let Some((words, errors)) = pieces.next() {
                piece(translator, words, errors);
                if began.elapsed() >= TICK {
                    return (pieces, true);
                }
            }
            (pieces, false)
        });
        if !left {
            return Ok(());
        }
        py.check_signals()?;
        machine.check_home(py)?;
    }
}

/// Makes gpas of addresses, in place, and the errors of those that have none.
fn piece(translator: &Translator<'_>, words: &mut [u64], errors: &mut [i32]) {
    let words = Cell::from_mut(words).as_slice_of_cells();
    translator.each(words.iter().map(|word| Gva::new(word.get())), |number, found| match found {
        Ok(gpa) => words[number].set(gpa.get()),
        Err(error) => {
            words[number].set(u64::MAX);
            errors[number] = match error {
                TranslateError::NotCanonical => NOT_CANONICAL,
                TranslateError::PageFault(code) => code.bits().cast_signed(),
            };
        }
    });
}
