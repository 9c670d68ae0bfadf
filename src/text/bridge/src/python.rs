//! Python's spelling of values, and what Jinja templates expect of Python besides.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Output, State, Value};

use crate::abi::Kind;

/// Why a render failed, in an error's source, where minijinja has no kind for it.
#[derive(Debug)]
pub struct Reason(pub Kind);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Reason {}

pub fn runtime(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

pub fn security(message: impl Into<String>) -> Error {
    runtime(message).with_source(Reason(Kind::Security))
}

pub fn raise_exception(message: Value) -> Result<Value, Error> {
    Err(runtime(str_of(&message)).with_source(Reason(Kind::Raised)))
}

/// The shortest digits that read back the same, an exponent from 1e16 on and below 1e-4.
pub fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            format!("{}e{exponent:+03}", mantissa.trim_end_matches(".0"))
        }
        None => text,
    }
}

/// str(value)
pub fn str_of(value: &Value) -> String {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float_repr)
        }
        _ => value.to_string(),
    }
}

pub fn format_value(out: &mut Output, _state: &mut State, value: &Value) -> Result<(), Error> {
    out.write_str(&str_of(value)).map_err(Error::from)
}
