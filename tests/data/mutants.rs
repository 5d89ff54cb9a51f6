//! Damaged files: 5,000 lines and 5,000 tokenizers, each with some bytes changed.

use std::path::Path;

use qlora_train::data::{Dataset, Moment, Special, Tokenizer};
use qlora_train::random::{Purpose, Random};

use super::{CHATML, NOW, TINY_VOCAB, Tiny, policy};

/// Changes some bytes: flips, removals, copies.
fn mutate(bytes: &mut Vec<u8>, random: &Random) {
    for change in 0..1 + u64::from(random.u32_at(0) % 2) {
        let pick = |k: u64, bound: usize| random.u32_at(1 + 4 * change + k) as usize % bound.max(1);
        let at = pick(0, bytes.len());
        let interesting = b"{}[]\",:\\0-9e\xff\x00 nul";
        match pick(1, 4) {
            0 => bytes[at] = interesting[pick(2, interesting.len())],
            1 => bytes[at] ^= 1 << pick(2, 8),
            2 => drop(bytes.drain(at..bytes.len().min(at + 1 + pick(2, 12)))),
            _ => {
                let part = bytes[at..bytes.len().min(at + 1 + pick(2, 12))].to_vec();
                let to = pick(3, bytes.len());
                bytes.splice(to..to, part);
            }
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
}

/// A new file each time: some file systems wait for the disk where an old one is cut and refilled.
fn rewrite(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn no_damaged_line_or_tokenizer_ends_in_a_panic() {
    let tiny = Tiny::new().add_bos().config("chat_template", CHATML.into());
    let (files, tokenizer) = (tiny.files(), tiny.load().unwrap());
    let lines = [
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "weight": 1}], "tools": "[]"}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}"#,
        r#"{"instruction": "q", "input": null, "output": "a", "history": [["a", "b"]]}"#,
        r#"{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]}"#,
        r#"{"prompt": "q", "completion": "a"}"#,
    ];
    let path = tiny.folder.path().join("mutant.jsonl");
    let mut accepted = 0;
    for step in 0..5000 {
        let random = Random::new(11, Purpose::Sample, step);
        let mut line = lines[step as usize % lines.len()].as_bytes().to_vec();
        mutate(&mut line, &random);
        rewrite(&path, &line);
        let data =
            Dataset::load(std::slice::from_ref(&path), Some(&tokenizer), &policy(TINY_VOCAB, 32));
        accepted += usize::from(data.is_ok());
    }
    assert!((100..4900).contains(&accepted), "{accepted}");
    let whole = std::fs::read(&files.tokenizer_json).unwrap();
    accepted = 0;
    for step in 0..5000 {
        let mut mutant = whole.clone();
        mutate(&mut mutant, &Random::new(12, Purpose::Sample, step));
        rewrite(&files.tokenizer_json, &mutant);
        if let Ok(tokenizer) = Tokenizer::load(&files, TINY_VOCAB, Moment::from_unix(NOW)) {
            accepted += 1;
            let text = "ab 4 </s>é\n";
            let ids = tokenizer.encode(text, Special::Add).map(|encoded| encoded.ids);
            let below = ids.iter().flatten().all(|&id| (id as usize) < TINY_VOCAB);
            assert!(below, "{ids:?}");
            let _ = tokenizer.decode(&ids.unwrap_or_default());
        }
    }
    assert!((50..4950).contains(&accepted), "{accepted}");
}
