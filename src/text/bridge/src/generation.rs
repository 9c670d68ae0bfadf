//! `{% generation %}` blocks mark what a model wrote, for training; here they only scope their body.

/// The template with `generation` tags turned into `with` tags: same scope, same white space, same
/// lines. Comments, raw blocks and strings are left alone.
pub fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        let tag = &rest[start..];
        let end = match tag.as_bytes().get(1) {
            Some(b'#') if !raw => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') if !raw => expression_end(tag, "}}"),
            Some(b'%') => {
                let name = tag[2..].trim_start_matches(['-', '+']).trim_start();
                let replaced = match word(name) {
                    "generation" if !raw => "with",
                    "endgeneration" if !raw => "endwith",
                    "raw" if !raw => {
                        raw = true;
                        ""
                    }
                    "endraw" => {
                        raw = false;
                        ""
                    }
                    _ => "",
                };
                let end = if raw { 2 } else { expression_end(tag, "%}") };
                if !replaced.is_empty() {
                    let at = rest.len() - name.len();
                    out.push_str(&rest[..at]);
                    out.push_str(replaced);
                    rest = &rest[at + word(name).len()..];
                    continue;
                }
                end
            }
            _ => 1,
        };
        out.push_str(&rest[..start + end]);
        rest = &rest[start + end..];
    }
    out.push_str(rest);
    out
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// Where the tag that `tag` begins with ends; strings inside may spell its end.
fn expression_end(tag: &str, closing: &str) -> usize {
    let bytes = tag.as_bytes();
    let mut quote = None;
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if tag[at..].starts_with(closing) => return at + 2,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}
