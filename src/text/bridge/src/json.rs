//! `tojson` as transformers defines it: Python's json.dumps, ensure_ascii off.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use crate::python::{float_repr, runtime};

struct Options {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Options {
    /// The filter's arguments: by position ensure_ascii, indent, separators, sort_keys; or by name.
    fn from_arguments(positional: &[Value], named: &Kwargs) -> Result<Options, Error> {
        if positional.len() > 4 {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            let value = match positional.get(index) {
                Some(value) => Some(value.clone()),
                None => named.get::<Option<Value>>(name)?,
            };
            Ok(value.filter(|value| !value.is_none()))
        };
        let ensure_ascii = argument(0, "ensure_ascii")?;
        let indent = argument(1, "indent")?;
        let separators = argument(2, "separators")?;
        let sort_keys = argument(3, "sort_keys")?;
        named.assert_all_used()?;

        let indent = match indent {
            None => None,
            Some(value) => Some(match value.as_str() {
                Some(text) => text.to_string(),
                None => " ".repeat(i64::try_from(value)?.clamp(0, 1000) as usize),
            }),
        };
        let (item_separator, key_separator) = match separators {
            None if indent.is_some() => (",".to_string(), ": ".to_string()),
            None => (", ".to_string(), ": ".to_string()),
            Some(pair) => {
                let pair: Vec<Value> = pair.try_iter()?.collect();
                match pair.as_slice() {
                    [item, key] => (item.to_string(), key.to_string()),
                    _ => return Err(runtime("tojson: separators are a pair")),
                }
            }
        };
        Ok(Options {
            ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
            indent,
            item_separator,
            key_separator,
            sort_keys: sort_keys.is_some_and(|value| value.is_true()),
        })
    }
}

struct Writer<'a> {
    options: Options,
    state: &'a State<'a, 'a>,
    out: String,
    charged: usize,
}

pub fn tojson(
    state: &State,
    value: Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let options = Options::from_arguments(&positional, &named)?;
    let mut writer = Writer { options, state, out: String::new(), charged: 0 };
    writer.value(&value, 0)?;
    Ok(writer.out)
}

impl Writer<'_> {
    fn charge(&mut self) -> Result<(), Error> {
        let grown = (self.out.len() - self.charged) / 64;
        if grown > 0 {
            self.charged += grown * 64;
            self.state.consume_fuel(grown as u64)?;
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.charge()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.block('[', ']', &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.options.sort_keys {
                    keys.sort();
                }
                self.block('{', '}', &keys, depth, |writer, key| {
                    writer.key(key)?;
                    let separator = writer.options.key_separator.clone();
                    writer.out.push_str(&separator);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(runtime(format!("Object of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn block(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.options.item_separator);
            }
            self.new_line(depth + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.options.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        self.charge()
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
            }
            _ => return Err(runtime("keys must be str, int, float, bool or None")),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            let _ = write!(self.out, "{value}");
            return;
        }
        let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        match number {
            _ if number.is_nan() => self.out.push_str("NaN"),
            f64::INFINITY => self.out.push_str("Infinity"),
            f64::NEG_INFINITY => self.out.push_str("-Infinity"),
            _ => self.out.push_str(&float_repr(number)),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.options.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
