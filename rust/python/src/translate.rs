//! `Vcpu.translate_many`: an array of addresses in, arrays of gpas and error codes out.

use core::{cell::Cell, time::Duration};
use std::time::Instant;

use pyo3::{
    buffer::{PyBuffer, PyUntypedBuffer},
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyTuple},
};
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

/// `as_addresses` and `of_bytes` of `shadow_mmu.translations`.
static CONVERT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static ARRAYS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Addresses as a buffer of words, `None` where there are none; and their shape.
type Addresses = (Option<PyBuffer<u64>>, Vec<usize>);

/// A buffer that holds addresses as they are; others are `None`.
fn words(buffer: PyUntypedBuffer) -> Option<Addresses> {
    if buffer.dimensions() == 0 {
        return None;
    }
    let shape = buffer.shape().to_vec();
    if shape.contains(&0) {
        return Some((None, shape));
    }
    // PyO3 takes words of the other byte order for its own.
    let own_order = !buffer.format().to_bytes().starts_with(b">");
    own_order.then(|| buffer.into_typed().ok()).flatten().map(|words| (Some(words), shape))
}

/// The addresses, converted if they are not words yet.
fn addresses(gvas: &Bound<'_, PyAny>) -> PyResult<Addresses> {
    let py = gvas.py();
    if let Some(found) = PyUntypedBuffer::get(gvas).ok().and_then(words) {
        return Ok(found);
    }
    let made = CONVERT.import(py, "shadow_mmu.translations", "as_addresses")?.call1((gvas,))?;
    words(PyUntypedBuffer::get(&made)?).ok_or_else(|| errors::layout(py, format!("gvas: got {made}, expected words")))
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
    let (gvas, shape) = addresses(gvas)?;
    let count = gvas.as_ref().map_or(0, |words| words.item_count());
    // One object for both: the gpas, then the errors.
    let found = PyBytes::new_with(py, (8 + 4) * count, |bytes| {
        let (gpa, error) = bytes.split_at_mut(8 * count);
        // The addresses first, in C order: no other thread can change this copy.
        if let Some(gvas) = &gvas {
            match bytemuck::try_cast_slice_mut(gpa) {
                Ok(words) => gvas.copy_to_slice(py, words)?,
                Err(_) => gpa.copy_from_slice(bytemuck::cast_slice(&gvas.to_vec(py)?)),
            }
        }
        let (gpa, error) = (gpa.as_chunks_mut::<8>().0, error.as_chunks_mut::<4>().0);
        machine.core(py, |vm| {
            let cpu = vm.cpu(index)?;
            Ok(in_pieces(py, machine, &cpu.translator(kind, flags), gpa, error))
        })?
    })?;
    let arrays = ARRAYS.import(py, "shadow_mmu.translations", "of_bytes")?;
    if shape.len() == 1 { arrays.call1((found, count)) } else { arrays.call1((found, count, PyTuple::new(py, shape)?)) }
}

/// Translates in place, with a look for signals now and then.
fn in_pieces(
    py: Python<'_>,
    machine: &Machine,
    translator: &Translator<'_>,
    gpa: &mut [[u8; 8]],
    error: &mut [[u8; 4]],
) -> PyResult<()> {
    if gpa.len() < MANY {
        piece(translator, gpa, error);
        return Ok(());
    }
    let mut pieces = gpa.chunks_mut(PIECE).zip(error.chunks_mut(PIECE));
    loop {
        let left;
        (pieces, left) = py.detach(move || {
            let began = Instant::now();
            while let Some((gpa, error)) = pieces.next() {
                piece(translator, gpa, error);
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

/// Translates the addresses in `gpa` in place.
fn piece(translator: &Translator<'_>, gpa: &mut [[u8; 8]], error: &mut [[u8; 4]]) {
    let gpa = Cell::from_mut(gpa).as_slice_of_cells();
    let gvas = gpa.iter().map(|word| Gva::new(u64::from_ne_bytes(word.get())));
    translator.each(gvas, |number, found| {
        let (reached, told) = match found {
            Ok(gpa) => (gpa.get(), TRANSLATED),
            Err(TranslateError::NotCanonical) => (u64::MAX, NOT_CANONICAL),
            Err(TranslateError::PageFault(code)) => (u64::MAX, code.bits().cast_signed()),
        };
        gpa[number].set(reached.to_ne_bytes());
        error[number] = told.to_ne_bytes();
    });
}
