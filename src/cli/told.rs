//! The data of a run, loaded, and told before anything is learned from it: how many tokens are
//! supervised, what was cut and dropped, whether an end token is taught, and one example in full.

use std::path::PathBuf;

use qlora_train::data::Tokenizer;
use qlora_train::data::{Counts, DataReport, Dataset, Example, Policy};
use qlora_train::data::{ExplainedToken, explain};
use qlora_train::error::{Error, Place, escape};

use super::opened::Opened;
use super::output;
use super::table::grouped;

/// Reads `files`. Where the model has no tokenizer and a record needs one, the refusal says how to
/// get it.
///
/// # Errors
/// As [`Dataset::load`].
pub fn load(
    files: &[PathBuf],
    opened: &Opened,
    tokenizer: Option<&Tokenizer>,
    policy: &Policy,
) -> Result<Dataset, Error> {
    Dataset::load(files, tokenizer, policy).map_err(|error| {
        match (error, opened.files.tokenizer()) {
            (Error::Input { place, what }, Err(missing))
                if what.starts_with("needs a tokenizer") =>
            {
                Error::input(place, format!("needs a tokenizer, or input_ids: {missing}"))
            }
            (error, _) => error,
        }
    })
}

/// Says what was read; `what` names the data (`data`, `evaluation data`).
pub fn tell(what: &str, report: &DataReport, tokenizer: Option<&Tokenizer>) {
    let [records, rows, tokens, supervised] =
        [report.records, report.examples, report.tokens, report.supervised_tokens].map(grouped);
    output::note(format_args!(
        "{what}: {records} records, {rows} sequences, {tokens} tokens, {supervised} supervised"
    ));
    for (kind, counts) in &report.kinds {
        let Counts { records, sequences, tokens, supervised, ends, .. } = *counts;
        let ends = match tokenizer {
            Some(_) => format!(", an end token is learned in {} of {sequences}", grouped(ends)),
            None => String::new(),
        };
        output::note(format_args!(
            "  {}: {} records, {} tokens, {} supervised{ends}",
            kind.name(),
            grouped(records),
            grouped(tokens),
            grouped(supervised)
        ));
    }
    if let Some(first) = report.begin_twice.first() {
        output::warn(format_args!(
            "{what}: the begin token stands twice at the start of {} records ({first}{}): one of them is \
             in the records or the template",
            grouped(report.begin_twice.len()),
            places(&report.begin_twice[1..])
        ));
    }
    if let Some(first) = report.begin_missing.first() {
        output::note(format_args!(
            "  without a begin token: {} records ({first}{})",
            grouped(report.begin_missing.len()),
            places(&report.begin_missing[1..])
        ));
    }
    if let Some(first) = report.cut.first() {
        output::note(format_args!(
            "  cut to --seq-len: {} records, {} tokens lost ({first}{})",
            grouped(report.cut.len()),
            grouped(report.cut_tokens),
            places(&report.cut[1..]),
        ));
    }
    if let Some((first, reason)) = report.dropped.first() {
        let others: Vec<_> = report.dropped[1..].iter().map(|(place, _)| place.clone()).collect();
        let count = grouped(report.dropped.len());
        output::note(format_args!(
            "  dropped: {count} records ({first}: {reason}{})",
            places(&others)
        ));
    }
    if report.split_borders > 0 {
        let count = grouped(report.split_borders);
        output::note(format_args!(
            "  {count} completions start inside a token and are encoded by themselves; a prompt \
             that ends without a space avoids it"
        ));
    }
    if report.end_token_supervised == 0 && tokenizer.is_some() {
        output::warn(format_args!(
            "{what}: no end token is ever supervised: the model will not learn to stop"
        ));
    }
}

/// Refuses to learn from data that would teach the wrong thing.
///
/// # Errors
/// As [`DataReport::refusal`].
pub fn refuse(
    files: &[PathBuf],
    report: &DataReport,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), Error> {
    let Some((place, what)) = report.refusal(tokenizer) else { return Ok(()) };
    let place = place.unwrap_or_else(|| files.first().map_or(Place::flag("DATA"), Place::from));
    Err(Error::input(place, what))
}

/// Up to two further places; the rest is counted by the caller.
fn places(others: &[Place]) -> String {
    let shown = others.iter().take(2).map(|place| format!("; {place}"));
    let more = if others.len() > 2 { "; …" } else { "" };
    shown.collect::<String>() + more
}

/// Shows an example with its mask, shortened to what stands around the first supervised token.
pub fn tell_example(files: &[PathBuf], example: &Example, tokenizer: Option<&Tokenizer>) {
    let tokens = explain(example, tokenizer);
    output::note(format_args!(
        "  for example {}, [supervised]: {}",
        example.origin.place(files),
        shortened(&tokens)
    ));
}

/// Tokens shown in front of the first supervised one, and from it on.
const AROUND: [usize; 2] = [12, 24];

fn shortened(tokens: &[ExplainedToken]) -> String {
    let first = tokens.iter().position(|token| token.supervised).unwrap_or(0);
    let from = first.saturating_sub(AROUND[0]);
    let to = tokens.len().min(first + AROUND[1]);
    let dots = |cut: bool, dots: &'static str| if cut { dots } else { "" };
    let shown = marked(&tokens[from..to]);
    format!("{}{shown}{}", dots(from > 0, "… "), dots(to < tokens.len(), " …"))
}

/// Tokens as the vocabulary writes them, supervised ones in brackets.
pub fn marked(tokens: &[ExplainedToken]) -> String {
    let one = |token: &ExplainedToken| match (token.supervised, escape(&token.text)) {
        (true, text) => format!("[{text}]"),
        (false, text) => text,
    };
    tokens.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_does_not_hide_where_the_answer_starts() {
        let token = |id: u32| ExplainedToken {
            text: format!("t{id}"),
            id,
            supervised: (50..80).contains(&id),
        };
        let tokens: Vec<_> = (0..100).map(token).collect();
        let text = shortened(&tokens);
        assert!(text.starts_with("… t38 t39"), "{text}");
        assert!(text.contains("t49 [t50] [t51]"), "{text}");
        assert!(text.ends_with("[t73] …"), "{text}");
        assert_eq!(shortened(&tokens[49..52]), "t49 [t50] [t51]");
    }
}
