//! What will be learned as one page of HTML, with nothing to load from elsewhere: for people who pass on data.

use std::fmt::Write;
use std::path::PathBuf;

use qlora_train::data::{DataReport, Example, ExplainedToken, Tokenizer, explain};

use super::table::grouped;

/// Colours that read on light and dark ground.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
.tokens { font: 13px/1.9 ui-monospace, monospace; overflow-wrap: anywhere; }
.tokens span { padding: .1rem .15rem; border-radius: .2rem; margin-right: .1rem; white-space: pre-wrap; }
.learned { background: #2da44e44; }
.given { opacity: .65; }
.wrong { border-left: 4px solid #d1242f; padding-left: .8rem; }
";

/// The page.
pub fn page(
    files: &[PathBuf],
    report: &DataReport,
    shown: &[Example],
    tokenizer: Option<&Tokenizer>,
) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>What will be learned</title>\n\
         <style>{STYLE}</style>\n<h1>What will be learned</h1>\n"
    );
    let names = files.iter().map(|file| safe(&file.display().to_string()));
    let _ = writeln!(page, "<p>{}</p>", names.collect::<Vec<_>>().join(", "));
    if let Some((place, what)) = report.refusal(tokenizer) {
        let place = place.map_or_else(String::new, |place| format!("{place}: "));
        let _ = writeln!(
            page,
            "<p class=\"wrong\">Training refuses this: {}</p>",
            safe(&format!("{place}{what}"))
        );
    }
    totals(&mut page, report, tokenizer.is_some());
    lists(&mut page, report);
    for example in shown {
        let (place, tokens) = (example.origin.place(files), explain(example, tokenizer));
        let _ = writeln!(
            page,
            "<h2>{}</h2>\n<p>{} tokens, {} supervised</p>\n<p class=\"tokens\">{}</p>",
            safe(&place.to_string()),
            grouped(tokens.len()),
            grouped(example.supervised_count()),
            tokens.iter().map(token).collect::<String>()
        );
    }
    page + "</html>\n"
}

fn totals(page: &mut String, report: &DataReport, ends_known: bool) {
    let ends = if ends_known { "<th>with a learned end</th>" } else { "" };
    let _ = writeln!(
        page,
        "<table>\n<tr><th>kind of record</th><th>records</th><th>sequences</th><th>tokens</th>\
         <th>supervised</th>{ends}<th>cut</th></tr>"
    );
    for (kind, c) in &report.kinds {
        let counts = [c.records, c.sequences, c.tokens, c.supervised];
        let counts = counts.into_iter().chain(ends_known.then_some(c.ends)).chain([c.cut]);
        let cells: String = counts.map(|count| format!("<td>{}</td>", grouped(count))).collect();
        let _ = writeln!(page, "<tr><td>{}</td>{cells}</tr>", kind.name());
    }
    page.push_str("</table>\n");
}

/// Records that were cut, dropped, or begin wrongly, by place.
fn lists(page: &mut String, report: &DataReport) {
    let mut list = |title: &str, lines: Vec<String>| {
        if lines.is_empty() {
            return;
        }
        let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", safe(line))).collect();
        let count = grouped(lines.len());
        let _ = writeln!(
            page,
            "<details>\n<summary>{title}: {count} records</summary>\n<ul>\n{items}</ul>\n</details>"
        );
    };
    let told =
        |places: &[qlora_train::error::Place]| places.iter().map(ToString::to_string).collect();
    list("Cut to the sequence length", told(&report.cut));
    let dropped = report.dropped.iter().map(|(place, why)| format!("{place}: {why}"));
    list("Dropped", dropped.collect());
    list("Begin token twice", told(&report.begin_twice));
    list("No begin token", told(&report.begin_missing));
}

fn token(token: &ExplainedToken) -> String {
    let class = if token.supervised { "learned" } else { "given" };
    format!("<span class=\"{class}\" title=\"{}\">{}</span>", token.id, safe(&token.text))
}

/// Text that stays text in HTML.
fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_from_data_becomes_markup() {
        assert_eq!(safe("<b a='1' c=\"2\">&\n"), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;\\n");
    }
}
