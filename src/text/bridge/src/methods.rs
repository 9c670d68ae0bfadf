//! Methods of Python's str, list and dict that minijinja's Python compatibility lacks or has
//! differently.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;

use crate::arguments::Arguments;
use crate::python::{runtime, security, str_of, Text};

pub fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.kind(), method) {
        (ValueKind::String, _) => {
            str_method(state, value.as_str().unwrap_or_default(), method, args)?
        }
        (
            ValueKind::Seq,
            "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort",
        )
        | (ValueKind::Map, "clear" | "pop" | "popitem" | "setdefault" | "update") => {
            return Err(security(format!(
                "the method {method} changes a value, which is not allowed"
            )));
        }
        (ValueKind::Map, "copy") => Some(value.clone()),
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn str_method(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let part = || Arguments::from_slice(&["part"], args);
    Ok(Some(match method {
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "partition" => partition(
            part()?.required_text(0)?,
            text.split_once(part()?.required_text(0)?),
            [text, "", ""],
        ),
        "rpartition" => partition(
            part()?.required_text(0)?,
            text.rsplit_once(part()?.required_text(0)?),
            ["", "", text],
        ),
        "removeprefix" => text.strip_prefix(part()?.required_text(0)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(part()?.required_text(0)?).unwrap_or(text).into(),
        "startswith" => has_affix(text, args, |text, affix| text.starts_with(affix))?,
        "endswith" => has_affix(text, args, |text, affix| text.ends_with(affix))?,
        "index" => index_of(text, text.find(part()?.required_text(0)?))?,
        "rindex" => index_of(text, text.rfind(part()?.required_text(0)?))?,
        "swapcase" => text.chars().map(swapped_case).collect::<String>().into(),
        "casefold" => text.to_lowercase().into(),
        "center" | "ljust" | "rjust" | "zfill" => padded(state, text, method, args)?.into(),
        "format" => {
            pay_for_format(state, text, args)?;
            return Ok(None);
        }
        "join" => joined(state, text, args)?.into(),
        _ => return Ok(None),
    }))
}

/// str.split and str.rsplit: at white space when no separator is given.
fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::from_slice(&["sep", "maxsplit"], args)?;
    let max_parts = match arguments.integer(1, -1)? {
        limit if limit < 0 => usize::MAX,
        limit => (limit as usize).saturating_add(1),
    };
    let parts: Vec<Value> = match arguments.text(0)? {
        Some("") => return Err(runtime("empty separator")),
        Some(separator) if from_end => {
            let mut parts: Vec<Value> =
                text.rsplitn(max_parts, separator).map(Value::from).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(max_parts, separator).map(Value::from).collect(),
        None => split_at_white_space(text, max_parts, from_end),
    };
    Ok(Value::from(parts))
}

fn split_at_white_space(text: &str, max_parts: usize, from_end: bool) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let cut = match from_end {
            _ if parts.len() + 1 >= max_parts => None,
            true => {
                rest.rsplit_once(char::is_whitespace).map(|(head, tail)| (tail, head.trim_end()))
            }
            false => {
                rest.split_once(char::is_whitespace).map(|(head, tail)| (head, tail.trim_start()))
            }
        };
        let (part, remaining) = cut.unwrap_or((rest, ""));
        parts.push(Value::from(part));
        rest = remaining;
    }
    if from_end {
        parts.reverse();
    }
    parts
}

fn partition(separator: &str, found: Option<(&str, &str)>, otherwise: [&str; 3]) -> Value {
    let parts = found.map_or(otherwise, |(head, tail)| [head, separator, tail]);
    Value::from(Tuple::from(parts.map(Value::from)))
}

/// startswith and endswith: of text[start:end], one string or a tuple of them.
fn has_affix(
    text: &str,
    args: &[Value],
    matches: impl Fn(&str, &str) -> bool,
) -> Result<Value, Error> {
    let arguments = Arguments::from_slice(&["affix", "start", "end"], args)?;
    let num_chars = text.chars().count() as i64;
    let position =
        |index: i64| if index < 0 { index.saturating_add(num_chars).max(0) } else { index };
    let start = position(arguments.integer(1, 0)?);
    let end = position(arguments.integer(2, num_chars)?).min(num_chars);
    if start > end {
        return Ok(Value::from(false));
    }
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    let part = &text[byte(start)..byte(end)];
    let is_affix = |affix: &Value| {
        let affix = affix.as_str().ok_or_else(|| runtime("an affix has to be a string"))?;
        Ok::<bool, Error>(matches(part, affix))
    };
    let affix = arguments.get(0).ok_or_else(|| runtime("an affix has to be a string"))?;
    if !affix.is_tuple() {
        return Ok(Value::from(is_affix(affix)?));
    }
    for item in affix.try_iter()? {
        if is_affix(&item)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn index_of(text: &str, found: Option<usize>) -> Result<Value, Error> {
    let at = found.ok_or_else(|| runtime("substring not found"))?;
    Ok(Value::from(text[..at].chars().count()))
}

fn swapped_case(c: char) -> char {
    match c.is_lowercase() {
        true => c.to_uppercase().next().unwrap_or(c),
        false => c.to_lowercase().next().unwrap_or(c),
    }
}

fn padded(state: &State, text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    let arguments = Arguments::from_slice(&["width", "fillchar"], args)?;
    let default_fill = if method == "zfill" { "0" } else { " " };
    let fill = arguments.text(1)?.unwrap_or(default_fill);
    let missing =
        arguments.integer(0, 0)?.saturating_sub(text.chars().count() as i64).max(0) as usize;
    let left = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & text.chars().count() & 1),
        _ => missing,
    };
    Text::new(state).pay_ahead(missing.saturating_mul(fill.len()))?;
    let signed = method == "zfill" && text.starts_with(['-', '+']);
    let (sign, digits) = text.split_at(usize::from(signed));
    Ok(format!("{sign}{}{digits}{}", fill.repeat(left), fill.repeat(missing - left)))
}

/// Every number in the format may be a width, and every field may be the longest argument.
fn pay_for_format(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
    let mut longest = 0;
    for argument in args {
        longest = longest.max(str_of(state, argument)?.len());
    }
    let mut size = format.matches('{').count().saturating_mul(longest);
    for digits in format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        size = size.saturating_add(digits.parse::<usize>().unwrap_or(usize::MAX));
    }
    Text::new(state).pay_ahead(size)
}

fn joined(state: &State, separator: &str, args: &[Value]) -> Result<String, Error> {
    let arguments = Arguments::from_slice(&["items"], args)?;
    let items = arguments.get(0).ok_or_else(|| runtime("join: nothing to join"))?;
    let mut text = Text::new(state);
    for (index, item) in items.try_iter()?.enumerate() {
        let item = item.as_str().ok_or_else(|| {
            runtime(format!("join: item {index} has to be a string, not {}", item.kind()))
        })?;
        text.out.push_str(if index > 0 { separator } else { "" });
        text.out.push_str(item);
        text.pay()?;
    }
    Ok(text.out)
}
