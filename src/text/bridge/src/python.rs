//! Python's spelling of values: str() and repr().

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Output, State, Value};

use crate::abi::Kind;

/// As deep as Python prints.
pub const MAX_DEPTH: usize = 1000;

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

/// Text that pays fuel as it grows.
pub struct Text<'a> {
    state: &'a State<'a, 'a>,
    pub out: String,
    paid: usize,
}

impl<'a> Text<'a> {
    pub fn new(state: &'a State) -> Text<'a> {
        Text { state, out: String::new(), paid: 0 }
    }

    pub fn pay(&mut self) -> Result<(), Error> {
        let units = self.out.len().saturating_sub(self.paid) / 64;
        self.paid += units * 64;
        self.state.consume_fuel(units as u64)
    }

    /// Fails before `size` more bytes are made for which the fuel does not suffice.
    pub fn pay_ahead(&mut self, size: usize) -> Result<(), Error> {
        self.paid = self.paid.saturating_add(size);
        self.state.consume_fuel(size as u64 / 64)
    }
}

/// The shortest digits that read back the same, an exponent from 1e16 on and below 1e-4.
pub fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan".into() } else { format!("{number}") };
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

pub fn str_of(state: &State, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => Ok(value.to_string()),
        _ => {
            let mut text = Text::new(state);
            push_repr(value, 0, &mut text)?;
            Ok(text.out)
        }
    }
}

pub fn format_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&str_of(state, value)?).map_err(Error::from),
    }
}

fn push_repr(value: &Value, depth: usize, text: &mut Text) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(runtime("the value is nested too deep"));
    }
    text.pay()?;
    match value.kind() {
        ValueKind::Undefined => text.out.push_str("Undefined"),
        ValueKind::String => push_string_repr(value.as_str().unwrap_or_default(), &mut text.out),
        ValueKind::Number if !value.is_integer() => {
            text.out.push_str(&float_repr(f64::try_from(value.clone())?))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            text.out.push(open);
            for (index, item) in value.try_iter()?.enumerate() {
                text.out.push_str(if index > 0 { ", " } else { "" });
                push_repr(&item, depth + 1, text)?;
            }
            if value.is_tuple() && value.len() == Some(1) {
                text.out.push(',');
            }
            text.out.push(close);
        }
        ValueKind::Map => {
            text.out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                text.out.push_str(if index > 0 { ", " } else { "" });
                push_repr(&key, depth + 1, text)?;
                text.out.push_str(": ");
                push_repr(&value.get_item(&key)?, depth + 1, text)?;
            }
            text.out.push('}');
        }
        _ => text.out.push_str(&value.to_string()),
    }
    Ok(())
}

fn push_string_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote || c == '\\' => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => {
                let _ = match c as u32 {
                    code @ 0..=0xff => write!(out, "\\x{code:02x}"),
                    code @ 0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// str.isprintable(), but private-use characters are, since prompts mark text with them.
fn is_printable(c: char) -> bool {
    let format_character = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || format_character)
}
