//! Python arguments as core types: 64-bit words, records in buffers.

use core::marker::PhantomData;

use bytemuck::Pod;
use pyo3::{
    Borrowed,
    buffer::PyUntypedBuffer,
    exceptions::{PyOverflowError, PyTypeError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::PyBytes,
};
use shadow_mmu::CpuModel;

use crate::errors;

/// A `shadow_mmu.CpuModel`.
#[derive(FromPyObject)]
#[expect(clippy::struct_excessive_bools, reason = "each is one CPUID bit")]
pub(crate) struct Processor {
    maxphyaddr: Word,
    gib_pages: bool,
    pse36: bool,
    nx: bool,
    wp: bool,
    smep: bool,
    smap: bool,
    la57: bool,
    long_mode: bool,
    pku: bool,
}

impl Processor {
    /// The core's name for it. Saturating keeps a width that is out of range out of range: the core says what it accepts.
    pub(crate) fn model(&self) -> CpuModel {
        CpuModel {
            maxphyaddr: u8::try_from(self.maxphyaddr.0).unwrap_or(u8::MAX),
            gib_pages: self.gib_pages,
            pse36: self.pse36,
            nx: self.nx,
            wp: self.wp,
            smep: self.smep,
            smap: self.smap,
            la57: self.la57,
            long_mode: self.long_mode,
            pku: self.pku,
        }
    }
}

/// An address, a register value or a length: an integer in `0..2**64`.
#[derive(Clone, Copy)]
pub(crate) struct Word(pub(crate) u64);

impl<'py> FromPyObject<'_, 'py> for Word {
    type Error = PyErr;

    #[inline]
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<u64>() {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(refuse_word(object, error)),
        }
    }
}

/// Says which integer does not fit; what is no integer keeps Python's own `TypeError`.
#[cold]
fn refuse_word(object: Borrowed<'_, '_, PyAny>, error: PyErr) -> PyErr {
    let py = object.py();
    if error.is_instance_of::<PyOverflowError>(py) {
        return match object.repr() {
            Ok(text) => errors::config(py, format!("got {text}, expected an integer in 0..2**64")),
            // Python does not print integers of thousands of digits.
            Err(_) => match object.call_method0("bit_length") {
                Ok(bits) => errors::config(py, format!("got an integer of {bits} bits, expected one in 0..2**64")),
                Err(error) => error,
            },
        };
    }
    error
}

/// Records of `T` that stand for the whole length of a call: a copy, so that no other thread can change them meanwhile.
/// Readable without the interpreter.
pub(crate) struct Records<T> {
    bytes: PyBackedBytes,
    /// The same once more where Python's copy is not aligned for `T`.
    realigned: Option<Vec<T>>,
    record: PhantomData<T>,
}

impl<T: Pod> Records<T> {
    /// Copies a C-contiguous buffer of whole records, `unit` bytes an item (or plain bytes).
    ///
    /// # Errors
    /// `ProgramError` naming the buffer, its layout and what was expected; `TypeError` for what is no buffer.
    pub(crate) fn copy(what: &str, object: &Bound<'_, PyAny>, unit: usize) -> PyResult<Self> {
        let py = object.py();
        let bytes = PyBackedBytes::from(contiguous(what, object, unit)?);
        let (length, record) = (bytes.len(), size_of::<T>());
        if !length.is_multiple_of(record) {
            let text = format!("{what}: got {length} bytes, expected a multiple of {record}");
            return Err(errors::layout(py, text));
        }
        let aligned = bytemuck::try_cast_slice::<u8, T>(&bytes).is_ok();
        let realigned = (!aligned).then(|| bytemuck::pod_collect_to_vec(&bytes));
        Ok(Self { bytes, realigned, record: PhantomData })
    }

    /// The records.
    pub(crate) fn as_slice(&self) -> &[T] {
        match &self.realigned {
            Some(records) => records,
            None => bytemuck::cast_slice(&self.bytes),
        }
    }
}

/// The bytes of a C-contiguous buffer whose items have `unit` bytes or one.
fn contiguous<'py>(what: &str, object: &Bound<'py, PyAny>, unit: usize) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(bytes.clone());
    }
    let py = object.py();
    let buffer = PyUntypedBuffer::get(object).map_err(|_| {
        let kind = object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        PyTypeError::new_err(format!("{what} must be bytes or an array, not {kind}"))
    })?;
    let item = buffer.item_size();
    if item != unit && item != 1 {
        let text = format!("{what}: got items of {item} bytes, expected {unit} (or plain bytes)");
        return Err(errors::layout(py, text));
    }
    if !buffer.is_c_contiguous() {
        return Err(errors::layout(py, format!("{what}: got a non-contiguous array, expected a C-contiguous one")));
    }
    Ok(py.get_type::<PyBytes>().call1((object,))?.cast_into::<PyBytes>()?)
}

/// The bytes of any C-contiguous buffer.
pub(crate) fn plain_bytes<'py>(what: &str, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let unit = PyUntypedBuffer::get(object).map_or(1, |buffer| buffer.item_size());
    contiguous(what, object, unit)
}
