//! What every entry of the ABI does: errors as text with a kind, panics caught.

use std::any::Any;
use std::ffi::c_void;
use std::os::raw::c_char;
use std::panic::{catch_unwind, AssertUnwindSafe};

pub type TextSink = extern "C" fn(*mut c_void, *const c_char, usize);

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(i32)]
pub enum Kind {
    Syntax = 1,
    Raised = 2,
    Undefined = 3,
    Security = 4,
    Runtime = 5,
}

pub struct Failure {
    pub kind: Kind,
    pub line: u32,
    pub message: String,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, line: 0, message: message.into() }
    }

    pub fn from_panic(payload: Box<dyn Any + Send>) -> Failure {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Failure::new(Kind::Runtime, format!("internal error: {text}"))
    }
}

#[repr(C)]
pub struct NibbleError {
    kind: i32,
    line: u32,
    sink: TextSink,
    target: *mut c_void,
}

/// Runs `body`; on failure fills `error` and returns None.
///
/// # Safety
/// `error` is valid.
pub unsafe fn guard<T>(
    error: *mut NibbleError,
    body: impl FnOnce() -> Result<T, Failure>,
) -> Option<T> {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::from_panic(payload),
    };
    let error = &mut *error;
    error.kind = failure.kind as i32;
    error.line = failure.line;
    send(&failure.message, error.sink, error.target);
    None
}

pub fn send(text: &str, sink: TextSink, target: *mut c_void) {
    sink(target, text.as_ptr().cast(), text.len());
}

/// The caller's text, which has to be UTF-8.
///
/// # Safety
/// `data` points to `size` bytes that outlive the result.
pub unsafe fn text<'a>(data: *const c_char, size: usize) -> Result<&'a str, Failure> {
    let bytes: &[u8] = match size {
        0 => &[],
        _ => std::slice::from_raw_parts(data.cast(), size),
    };
    std::str::from_utf8(bytes).map_err(|_| Failure::new(Kind::Runtime, "not UTF-8"))
}
