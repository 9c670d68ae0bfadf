//! Filters, tests and functions that jinja2 or transformers has and minijinja lacks or has
//! differently.

use minijinja::filters;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::abi::Kind;
use crate::arguments::Arguments;
use crate::json;
use crate::python::{runtime, str_of, Reason, Text};

pub fn install(environment: &mut Environment) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |state: &State, value: Value| str_of(state, &value));
    environment.add_filter("pprint", |state: &State, value: Value| str_of(state, &value));
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("list", list);
    environment.add_filter("indent", indent);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("unique", unique);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_test("iterable", is_sequence);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("_iterated", iterated);
}

fn raise_exception(state: &State, message: Value) -> Result<Value, Error> {
    Err(runtime(str_of(state, &message)?).with_source(Reason(Kind::Raised)))
}

/// What a loop runs over; see source.rs.
fn iterated(items: Rest<Value>) -> Result<Value, Error> {
    match items.as_slice() {
        [only] if only.is_none() => Err(runtime("none is not iterable")),
        [only] => Ok(only.clone()),
        several => Ok(Value::from(several.to_vec())),
    }
}

/// Iterables, too: slices and products of lists are ones.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Seq | Map | Iterable)
}

fn default(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut other = Value::from("");
    if let Some(first) = positional.first() {
        other = first.clone();
    } else if named.has("default_value") {
        other = named.get("default_value")?;
    }
    let arguments = Arguments::new(&["default_value", "boolean"], positional, named)?;
    let replaced = value.is_undefined() || (arguments.is_true(1) && !value.is_true());
    Ok(if replaced { other } else { value })
}

fn used(value: &Value) -> Result<&Value, Error> {
    match value.is_undefined() {
        true => Err(Error::from(ErrorKind::UndefinedError)),
        false => Ok(value),
    }
}

fn int(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(&["default", "base"], positional, named)?;
    let otherwise = arguments.get(0).cloned().unwrap_or(Value::from(0));
    if used(&value)?.is_integer() {
        return Ok(value);
    }
    if value.kind() == ValueKind::Bool {
        return Ok(Value::from(i64::from(value.is_true())));
    }
    let Some(text) = value.as_str() else {
        let number = f64::try_from(value).ok().filter(|number| number.is_finite());
        return Ok(number.map_or(otherwise, |number| Value::from(number as i128)));
    };
    let base = arguments.integer(1, 10)?;
    let digits = text.trim().replace('_', "").to_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
    if !(2..=36).contains(&base) {
        return Ok(otherwise);
    }
    if let Ok(number) = i128::from_str_radix(digits, base as u32) {
        return Ok(Value::from(number));
    }
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
    Ok(number.map_or(otherwise, |number| Value::from(number as i128)))
}

fn float(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(&["default"], positional, named)?;
    let number = match used(&value)?.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None => f64::try_from(value).ok(),
    };
    let otherwise = || arguments.get(0).cloned().unwrap_or(Value::from(0.0));
    Ok(number.map_or_else(otherwise, Value::from))
}

fn list(state: &State, value: Value) -> Result<Value, Error> {
    match value.is_none() {
        true => Err(runtime("none is not iterable")),
        false => filters::list(state, value),
    }
}

fn indent(
    state: &State,
    text: &str,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let arguments = Arguments::new(&["width", "first", "blank"], positional, named)?;
    let mut out = Text::new(state);
    let margin = match arguments.get(0).and_then(Value::as_str) {
        Some(margin) => margin.to_string(),
        None => {
            let width = arguments.integer(0, 4)?.max(0) as usize;
            out.pay_ahead(width)?;
            " ".repeat(width)
        }
    };
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.out.push('\n');
        }
        let blank = line.is_empty() && !(arguments.is_true(2) || index == 0);
        if !blank && (index > 0 || arguments.is_true(1)) {
            out.pay_ahead(margin.len())?;
            out.out.push_str(&margin);
        }
        out.out.push_str(line);
    }
    Ok(out.out)
}

fn dictsort(
    state: &State,
    value: Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    state.consume_fuel(value.len().unwrap_or(0) as u64)?;
    let arguments = Arguments::new(&["case_sensitive", "by", "reverse"], positional, named)?;
    filters::dictsort(&value, arguments.into_kwargs())
}

fn unique(
    state: &State,
    value: Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let arguments = Arguments::new(&["case_sensitive", "attribute"], positional, named)?;
    filters::unique(state, value, arguments.into_kwargs())
}

fn truncate(
    state: &mut State,
    value: Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let arguments = Arguments::new(&["length", "killwords", "end", "leeway"], positional, named)?;
    minijinja_contrib::filters::truncate(state, &value, arguments.into_kwargs())
}

fn center(state: &mut State, text: Value, width: Option<Value>) -> Result<Value, Error> {
    text.call_method(state, "center", &[width.unwrap_or(Value::from(80))])
}

fn escape(state: &State, value: Value) -> Result<Value, Error> {
    let text = str_of(state, &value)?;
    Text::new(state).pay_ahead(text.len() * 5)?;
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(Value::from(escaped.replace('\'', "&#39;").replace('"', "&#34;")))
}
