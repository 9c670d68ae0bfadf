//! `tojson` as transformers defines it: Python's json.dumps, ensure_ascii off.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, State, Value};

use crate::arguments::Arguments;
use crate::python::{float_repr, runtime, Text, MAX_DEPTH};

const MAX_INDENT: i64 = 1000;

struct Writer<'a> {
    text: Text<'a>,
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

pub fn tojson(
    state: &State,
    value: Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let names = &["ensure_ascii", "indent", "separators", "sort_keys"];
    let arguments = Arguments::new(names, positional, named)?;
    let indent = match arguments.get(1) {
        Some(value) if value.as_str().is_none() => {
            Some(" ".repeat(arguments.integer(1, 0)?.clamp(0, MAX_INDENT) as usize))
        }
        value => value.map(Value::to_string),
    };
    let (item_separator, key_separator) = match arguments.get(2) {
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
        Some(pair) => match pair.try_iter()?.take(3).collect::<Vec<Value>>().as_slice() {
            [item, key] => (item.to_string(), key.to_string()),
            _ => return Err(runtime("tojson: separators has to be a pair")),
        },
    };
    let mut writer = Writer {
        text: Text::new(state),
        ensure_ascii: arguments.is_true(0),
        indent,
        item_separator,
        key_separator,
        sort_keys: arguments.is_true(3),
    };
    writer.value(&value, 0)?;
    Ok(writer.text.out)
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(runtime("tojson: the value is nested too deep"));
        }
        self.text.pay()?;
        match value.kind() {
            ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.block("[", "]", items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.block("{", "}", keys.into_iter(), depth, |writer, key| {
                    writer.key(key)?;
                    writer.text.out.push_str(&writer.key_separator);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(runtime(format!("tojson: an object of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn push(&mut self, text: &str) {
        self.text.out.push_str(text);
    }

    fn block(
        &mut self,
        open: &str,
        close: &str,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.text.out.push_str(&self.item_separator);
            }
            is_empty = false;
            self.new_line(depth + 1)?;
            write(self, &item)?;
        }
        if !is_empty {
            self.new_line(depth)?;
        }
        self.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.text.pay_ahead(indent.len().saturating_mul(depth))?;
            self.text.out.push('\n');
            self.text.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                self.push("\"");
                self.value(key, 0)?;
                self.push("\"");
            }
            kind => return Err(runtime(format!("tojson: {kind} cannot be a key"))),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        match number {
            _ if value.is_integer() => self.push(&value.to_string()),
            f64::INFINITY => self.push("Infinity"),
            f64::NEG_INFINITY => self.push("-Infinity"),
            _ if number.is_nan() => self.push("NaN"),
            _ => self.push(&float_repr(number)),
        }
    }

    /// Private-use characters are not escaped, since prompts mark text with them.
    fn string(&mut self, text: &str) {
        let must_escape = |c: char| {
            c < ' ' || (self.ensure_ascii && c > '~' && !('\u{e000}'..='\u{f8ff}').contains(&c))
        };
        let out = &mut self.text.out;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if must_escape(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
