//! A chat template's source, changed before it is compiled.
//!
//! - `{% generation %}` is Hugging Face's own block; a filter block has the same white space and the same
//!   scope.
//! - What is stored in a namespace is a copy. A namespace in a namespace could hold itself, and whoever
//!   prints, compares or copies it would not come to an end.

/// The filter that a generation block becomes.
pub const MARK_FILTER: &str = "mark_generation";
/// The filter that copies what is stored.
pub const COPY_FILTER: &str = "copy_of_value";

/// The source to compile, and whether it has a generation block.
pub fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut has_generation) = (source, false);
    while let Some(start) = rest.find("{").filter(|start| start + 2 <= rest.len()) {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let length = match &tag.as_bytes()[..2] {
            b"{#" => tag.find("#}").map(|at| at + 2),
            b"{{" => end_of(tag, "}}"),
            b"{%" => end_of(tag, "%}"),
            _ => Some(1),
        };
        let Some(length) = length else {
            // What is never closed is the compiler's to refuse.
            out.push_str(tag);
            return (out, has_generation);
        };
        let (whole, behind) = tag.split_at(length);
        rest = behind;
        match whole.strip_prefix("{%").and_then(|inner| inner.strip_suffix("%}")) {
            Some(inner) => {
                let changed = block(inner);
                has_generation |= matches!(word(inner), "generation" | "endgeneration");
                out.push_str(&format!("{{%{changed}%}}"));
                if word(inner) == "raw" {
                    let end = behind.find("endraw").unwrap_or(behind.len());
                    out.push_str(&behind[..end]);
                    rest = &behind[end..];
                }
            }
            None => out.push_str(whole),
        }
    }
    out.push_str(rest);
    (out, has_generation)
}

/// Length of `tag` up to behind the first `mark` that stands in no string.
fn end_of(tag: &str, mark: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', Some(_)) => at += 1,
            (byte, Some(open)) if byte == open => quote = None,
            (_, Some(_)) => (),
            (byte @ (b'\'' | b'"'), None) => quote = Some(byte),
            (_, None) if bytes[at..].starts_with(mark.as_bytes()) => return Some(at + mark.len()),
            (_, None) => (),
        }
        at += 1;
    }
    None
}

/// The first word of a block, white-space marks aside.
fn word(inner: &str) -> &str {
    let text = inner.trim_start_matches(['-', '+']).trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The inside of a block as it is compiled.
fn block(inner: &str) -> String {
    match word(inner) {
        "generation" => inner.replacen("generation", &format!("filter {MARK_FILTER}"), 1),
        "endgeneration" => inner.replacen("endgeneration", "endfilter", 1),
        "set" => stored(inner).unwrap_or_else(|| inner.to_owned()),
        _ => inner.to_owned(),
    }
}

/// `set a.b = value` with a copy of the value; `None` where nothing is stored in a namespace.
fn stored(inner: &str) -> Option<String> {
    let (target, value) = inner.split_once('=')?;
    if !target.contains('.') || target.contains('|') {
        return None;
    }
    let (value, mark) = match value.strip_suffix(['-', '+']) {
        Some(value) => (value, &inner[inner.len() - 1..]),
        None => (value, ""),
    };
    Some(format!("{target}=({value})|{COPY_FILTER} {mark}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_copied_and_all_else_stays_as_it_is() {
        let same = |text: &str| assert_eq!(rewrite(text), (text.to_owned(), false));
        for text in [
            "",
            "{",
            "a { b",
            "{%}",
            "{% set x = ns %}{{ '{% set ns.x = ns %}' }}",
            "{# {% set ns.x = 1 %} #}{% raw %}{% set ns.x = 1 %}{% endraw %}",
            "{% if a == '%}' %}é{% endif %}",
            "{% set ns.x %}a{% endset %}",
            "{% unfinished",
        ] {
            same(text);
        }
        let (copied, _) = rewrite("{%- set ns.x = a + '%}' -%}{% set ns.y, b = 1, 2 %}");
        let first = format!("{{%- set ns.x =( a + '%}}' )|{COPY_FILTER} -%}}");
        let second = format!("{{% set ns.y, b =( 1, 2 )|{COPY_FILTER} %}}");
        assert_eq!(copied, first + &second);
        let (marked, has_generation) = rewrite("{%- generation -%}a{% endgeneration %}");
        assert_eq!(marked, format!("{{%- filter {MARK_FILTER} -%}}a{{% endfilter %}}"));
        assert!(has_generation);
    }
}
