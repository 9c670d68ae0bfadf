//! Template source in jinja2's dialect -> minijinja's. Lines stay where they are.
//!
//! - `\r\n` and `\r` are `\n`.
//! - `{% generation %}`, which marks what a model wrote, becomes `{% with %}`: only its scope is left.
//! - The line break behind `{% raw %}` stays.
//! - `for x in items` becomes `for x in _iterated(items)`, which refuses none.
//! - `set x = value` becomes `set x = _stored((value))`, and `set x.y = value` `_kept((value))`,
//!   which refuse what minijinja could not print or compare in bounded time.
//! - `\U0001F600` in a string becomes a pair of `\u` escapes.

use std::fmt::Write;

use crate::abi::{Failure, Kind};

/// minijinja's compiler takes time by the square of an expression's length. Strings do not count.
const MAX_CODE_BYTES: usize = 8 << 10;

pub fn adapted(source: &str) -> Result<String, Failure> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find('{') {
        let tag = &rest[start..];
        out.push_str(&rest[..start]);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => tag_end(tag, "}}"),
            Some(b'%') => tag_end(tag, "%}"),
            _ => 1,
        };
        let (tag, behind) = tag.split_at(end);
        rest = behind;
        if !tag.starts_with("{#") && code_bytes(tag).nth(MAX_CODE_BYTES).is_some() {
            let line = 1 + out.matches('\n').count() as u32;
            let message =
                format!("a tag is longer than {MAX_CODE_BYTES} bytes without its strings");
            return Err(Failure { kind: Kind::Syntax, line, message });
        }
        if !tag.starts_with("{%") {
            push_with_plain_escapes(tag, &mut out);
        } else if name_of(tag) == "raw" {
            out.push_str(&tag.replace("%}", "+%}").replace("-+%}", "-%}").replace("++%}", "+%}"));
            let raw_end = raw_length(rest);
            out.push_str(&rest[..raw_end]);
            rest = &rest[raw_end..];
        } else {
            push_with_plain_escapes(&adapted_tag(tag), &mut out);
        }
    }
    Ok(out + rest)
}

fn adapted_tag(tag: &str) -> String {
    let name = name_of(tag);
    let name_start = name.as_ptr() as usize - tag.as_ptr() as usize;
    let (before, after) = (&tag[..name_start], &tag[name_start + name.len()..]);
    match name {
        "generation" => format!("{before}with{after}"),
        "endgeneration" => format!("{before}endwith{after}"),
        "for" => format!("{before}for{}", adapted_loop(after)),
        "set" => format!("{before}set{}", adapted_assignment(after)),
        _ => tag.to_string(),
    }
}

/// `text`: what stands behind `for`, the end of the tag included.
fn adapted_loop(text: &str) -> String {
    let body_end = text.trim_end_matches("%}").trim_end_matches(['-', '+']).len();
    let mut items_start = None;
    let mut items_end = body_end;
    for (at, token) in top_level_words(&text[..body_end]) {
        match (token, items_start) {
            ("in", None) => items_start = Some(at + token.len()),
            ("if" | "recursive", Some(_)) => {
                items_end = at;
                break;
            }
            _ => {}
        }
    }
    match items_start {
        Some(start) if !text[start..items_end].trim().is_empty() => {
            let (head, tail) = (&text[..start], &text[items_end..]);
            format!("{head} _iterated({}) {tail}", &text[start..items_end])
        }
        _ => text.to_string(),
    }
}

/// `text`: what stands behind `set`, the end of the tag included.
fn adapted_assignment(text: &str) -> String {
    let body_end = text.trim_end_matches("%}").trim_end_matches(['-', '+']).len();
    let body = &text[..body_end];
    let assigns = |at: usize| !body[at + 1..].starts_with('=') && !body[..at].ends_with(['=', '!']);
    let sign = code_bytes(body)
        .find(|(at, byte, depth)| *depth == 0 && *byte == b'=' && assigns(*at))
        .map(|(at, _, _)| at);
    match sign {
        Some(at) if !body[at + 1..].trim().is_empty() => {
            let check = if body[..at].contains('.') { "_kept" } else { "_stored" };
            format!("{}= {check}(({})){}", &body[..at], &body[at + 1..], &text[body_end..])
        }
        _ => text.to_string(),
    }
}

fn name_of(tag: &str) -> &str {
    let text = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// How much of `text` stands before `{% endraw %}`.
fn raw_length(text: &str) -> usize {
    let is_end = |(at, _): &(usize, &str)| name_of(&text[*at..]) == "endraw";
    text.match_indices("{%").find(is_end).map_or(text.len(), |(at, _)| at)
}

/// The bytes of `text` outside of strings, each with the depth of brackets around it.
fn code_bytes(text: &str) -> impl Iterator<Item = (usize, u8, usize)> + '_ {
    let (mut quote, mut escaped, mut depth) = (None, false, 0usize);
    text.bytes().enumerate().filter_map(move |(at, byte)| {
        if let Some(open) = quote {
            (quote, escaped) = match byte {
                _ if escaped => (quote, false),
                b'\\' => (quote, true),
                _ if byte == open => (None, false),
                _ => (quote, false),
            };
            return None;
        }
        let outside = depth;
        match byte {
            b'"' | b'\'' => quote = Some(byte),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        Some((at, byte, outside))
    })
}

/// Where the tag that `tag` begins with ends.
fn tag_end(tag: &str, closing: &str) -> usize {
    code_bytes(&tag[2..])
        .find(|(at, _, depth)| {
            *depth == 0 && tag[2..].as_bytes()[*at..].starts_with(closing.as_bytes())
        })
        .map_or(tag.len(), |(at, _, _)| at + 4)
}

/// Words outside of strings and brackets.
fn top_level_words(text: &str) -> Vec<(usize, &str)> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let mut words: Vec<(usize, &str)> = Vec::new();
    for (at, byte, depth) in code_bytes(text) {
        if depth > 0 || !is_word(byte) {
            continue;
        }
        match words.last_mut() {
            Some((start, word)) if *start + word.len() == at => {
                *word = text.get(*start..=at).unwrap_or(word)
            }
            _ if text.is_char_boundary(at) && text.is_char_boundary(at + 1) => {
                words.push((at, &text[at..=at]))
            }
            _ => {}
        }
    }
    words
}

/// Appends `tag`; in its strings, 32-bit escapes become pairs of 16-bit ones.
fn push_with_plain_escapes(tag: &str, out: &mut String) {
    let mut rest = tag;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        out.push_str(&rest[..at]);
        let wide = escape.strip_prefix("\\U").and_then(|digits| digits.get(..8));
        let character =
            wide.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        let taken = match character {
            Some(character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
                10
            }
            None => {
                let taken = escape.chars().take(2).map(char::len_utf8).sum();
                out.push_str(&escape[..taken]);
                taken
            }
        };
        rest = &escape[taken..];
    }
    out.push_str(rest);
}
