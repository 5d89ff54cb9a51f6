//! What a JSON object of a data file is: one of six shapes, recognized from its keys.
//!
//! A key that belongs to no shape is the file's own remark (`id`, `title`, `source`) and is passed
//! over, as long as the object has the keys of exactly one shape. Preference records are refused
//! by name: of their two answers one is bad, and nothing here can unlearn it.
//!
//! Chats are read in [`super::chat`]; how each shape becomes tokens is in [`super::tokenize`].

use serde_json::{Map, Value};

use super::chat::{self, Chat};
use crate::error::escape;

/// Why a record is refused, and at which field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Path of the field (`messages[0].role`); empty where it is the record as a whole.
    pub field: String,
    /// What is wrong and what to do.
    pub what: String,
}

impl Refusal {
    pub fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
}

/// One record, its fields checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// `{"text"}` or a bare string.
    Text(String),
    /// `{"prompt", "completion"}` as strings.
    Completion { prompt: String, completion: String },
    /// `{"instruction", "output"}`.
    Instruction(Instruction),
    /// `{"messages"}`, `{"conversations"}`, or prompt and completion as message lists.
    Chat(Chat),
    /// `{"input_ids"}` with, for each id, whether it is supervised.
    Ids { ids: Vec<u32>, supervised: Vec<bool> },
}

/// A record of the Alpaca family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Instruction {
    pub system: Option<String>,
    /// Earlier rounds: question and answer.
    pub history: Vec<(String, String)>,
    pub instruction: String,
    /// Empty where there is none.
    pub input: String,
    pub output: String,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    Completion,
    Instruction,
    Instances,
    Messages,
    Conversations,
    Ids,
}

const SHAPES: [(Shape, &[&str]); 7] = [
    (Shape::Text, &["text"]),
    (Shape::Completion, &["prompt", "completion"]),
    (Shape::Instruction, &["instruction", "output"]),
    (Shape::Instances, &["instruction", "instances"]),
    (Shape::Messages, &["messages"]),
    (Shape::Conversations, &["conversations"]),
    (Shape::Ids, &["input_ids"]),
];

const KNOWN: &str = "text | prompt, completion | instruction, output | messages | conversations | \
                     input_ids";

/// Reads one JSON value of a data file; one record, but for `instances` with several.
pub(super) fn read(value: &Value) -> Result<Vec<Record>, Refusal> {
    match value {
        Value::Object(object) => read_object(object),
        Value::String(text) => Ok(vec![Record::Text(text.clone())]),
        Value::Array(_) => Err(Refusal::new(
            "",
            "is a JSON array where a record is expected; a file that is one array has the name \
             .json and holds objects",
        )),
        _ => Err(Refusal::new("", "is not a JSON object; one object is one record")),
    }
}

fn read_object(object: &Map<String, Value>) -> Result<Vec<Record>, Refusal> {
    refuse_preferences(object)?;
    let record = match shape(object)? {
        Shape::Text => Record::Text(string(object, "text")?),
        Shape::Completion => completion(object)?,
        Shape::Instruction => Record::Instruction(instruction(object)?),
        Shape::Instances => return instances(object),
        Shape::Messages => Record::Chat(chat::from_messages(object)?),
        Shape::Conversations => Record::Chat(chat::from_conversations(object)?),
        Shape::Ids => input_ids(object)?,
    };
    Ok(vec![record])
}

/// The one shape that has all its keys in the object.
fn shape(object: &Map<String, Value>) -> Result<Shape, Refusal> {
    let present = |(_, keys): &&(Shape, &[&str])| keys.iter().all(|key| object.contains_key(*key));
    let found: Vec<_> = SHAPES.iter().filter(present).collect();
    match found.as_slice() {
        [] => Err(unknown(object)),
        [(shape, _)] => Ok(*shape),
        [one, two, ..] => {
            let what = format!(
                "has the keys of two shapes, {} and {}; keep those of one",
                one.1.join(" + "),
                two.1.join(" + ")
            );
            Err(Refusal::new("", what))
        }
    }
}

fn refuse_preferences(object: &Map<String, Value>) -> Result<(), Refusal> {
    let pair = object.contains_key("chosen") && object.contains_key("rejected");
    let rated = matches!(object.get("label"), Some(Value::Bool(_)));
    if !pair && !rated {
        return Ok(());
    }
    let keys = if pair { "chosen and rejected (DPO)" } else { "a label true or false (KTO)" };
    let what = format!(
        "is a preference record, with {keys}; this trainer learns from answers that are all good: \
         keep those, as prompt and completion or as messages"
    );
    Err(Refusal::new("", what))
}

fn unknown(object: &Map<String, Value>) -> Refusal {
    let mut keys: Vec<String> = object.keys().take(12).map(|key| escape(key)).collect();
    if keys.is_empty() {
        keys.push("none".to_string());
    }
    let keys = keys.join(", ");
    Refusal::new("", format!("the keys ({keys}) are of no known shape; known: {KNOWN}"))
}

fn completion(object: &Map<String, Value>) -> Result<Record, Refusal> {
    match (&object["prompt"], &object["completion"]) {
        (Value::Array(_), Value::Array(_)) => chat::from_prompt(object).map(Record::Chat),
        (Value::Array(_), _) => Err(Refusal::new(
            "completion",
            "is not a list of messages, though the prompt is; make both lists or both strings",
        )),
        _ => Ok(Record::Completion {
            prompt: string(object, "prompt")?,
            completion: string(object, "completion")?,
        }),
    }
}

fn instruction(object: &Map<String, Value>) -> Result<Instruction, Refusal> {
    Ok(Instruction {
        system: optional_string(object, "system")?.filter(|system| !system.is_empty()),
        history: history(object)?,
        instruction: string(object, "instruction")?,
        input: optional_string(object, "input")?.unwrap_or_default(),
        output: string(object, "output")?,
    })
}

fn history(object: &Map<String, Value>) -> Result<Vec<(String, String)>, Refusal> {
    let rounds = match object.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(rounds)) => rounds,
        Some(_) => {
            return Err(Refusal::new("history", "is not a list of [question, answer]"));
        }
    };
    let round = |(index, round): (usize, &Value)| match round.as_array().map(Vec::as_slice) {
        Some([Value::String(question), Value::String(answer)]) => {
            Ok((question.clone(), answer.clone()))
        }
        _ => Err(Refusal::new(format!("history[{index}]"), "is not [question, answer]")),
    };
    rounds.iter().enumerate().map(round).collect()
}

/// Self-Instruct's seed tasks: one instruction, several inputs with their outputs.
fn instances(object: &Map<String, Value>) -> Result<Vec<Record>, Refusal> {
    let text = string(object, "instruction")?;
    let Some(list) = object["instances"].as_array() else {
        return Err(Refusal::new("instances", "is not a list of objects with input and output"));
    };
    let record = |(index, instance): (usize, &Value)| {
        let field = format!("instances[{index}]");
        let Some(instance) = instance.as_object() else {
            return Err(Refusal::new(field, "is not an object with input and output"));
        };
        let nested =
            |refusal: Refusal| Refusal::new(format!("{field}.{}", refusal.field), refusal.what);
        Ok(Record::Instruction(Instruction {
            instruction: text.clone(),
            input: optional_string(instance, "input").map_err(nested)?.unwrap_or_default(),
            output: string(instance, "output").map_err(nested)?,
            ..Instruction::default()
        }))
    };
    list.iter().enumerate().map(record).collect()
}

/// Label that Hugging Face's losses pass over.
const IGNORED: i64 = -100;

fn input_ids(object: &Map<String, Value>) -> Result<Record, Refusal> {
    let ids = integers(object, "input_ids")?.unwrap_or_default();
    let labels = integers(object, "labels")?;
    let mask = integers(object, "attention_mask")?;
    for (name, list) in [("labels", &labels), ("attention_mask", &mask)] {
        if let Some(list) = list.as_ref().filter(|list| list.len() != ids.len()) {
            let what = format!("has {} numbers, input_ids has {}", list.len(), ids.len());
            return Err(Refusal::new(name, what));
        }
    }
    let (mut kept, mut supervised) = (Vec::new(), Vec::new());
    for (index, &id) in ids.iter().enumerate() {
        let bit = mask.as_ref().map_or(1, |mask| mask[index]);
        if !(0..=1).contains(&bit) {
            return Err(Refusal::new(format!("attention_mask[{index}]"), "is neither 0 nor 1"));
        }
        let label = labels.as_ref().map_or(id, |labels| labels[index]);
        if label != id && label != IGNORED {
            let what = format!("is {label}, neither the token {id} nor {IGNORED}");
            return Err(Refusal::new(format!("labels[{index}]"), what));
        }
        if bit == 1 {
            kept.push(u32::try_from(id).map_err(|_| {
                Refusal::new(format!("input_ids[{index}]"), format!("{id} is no token id"))
            })?);
            supervised.push(label != IGNORED);
        }
    }
    Ok(Record::Ids { ids: kept, supervised })
}

fn integers(object: &Map<String, Value>, key: &str) -> Result<Option<Vec<i64>>, Refusal> {
    let list = match object.get(key) {
        None => return Ok(None),
        Some(Value::Null) if key != "input_ids" => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(Refusal::new(key, "is not a list of integers")),
    };
    let integer = |(index, value): (usize, &Value)| {
        let field = || format!("{key}[{index}]");
        value.as_i64().ok_or_else(|| Refusal::new(field(), "is not an integer"))
    };
    list.iter().enumerate().map(integer).collect::<Result<_, _>>().map(Some)
}

/// A string that must be there.
pub(super) fn string(object: &Map<String, Value>, key: &str) -> Result<String, Refusal> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) => Err(Refusal::new(key, "is null; write a string")),
        Some(_) => Err(Refusal::new(key, "is not a string")),
        None => Err(Refusal::new(key, "is missing")),
    }
}

/// A string that may be absent or null.
pub(super) fn optional_string(
    object: &Map<String, Value>,
    key: &str,
) -> Result<Option<String>, Refusal> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => string(object, key).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(value: Value) -> (String, String) {
        let refusal = read(&value).unwrap_err();
        (refusal.field, refusal.what)
    }

    #[test]
    fn remarks_are_passed_over_but_two_shapes_are_ambiguous() {
        let text = json!({"title": "x", "text": "hello", "author": null});
        assert_eq!(read(&text), Ok(vec![Record::Text("hello".into())]));
        assert!(refusal(json!({"text": "", "messages": []})).1.contains("text and messages"));
        let (_, what) = refusal(json!({"question": 1, "answer": 2}));
        assert!(what.contains("(question, answer)") && what.contains("conversations"), "{what}");
        assert!(refusal(json!({"prompt": "", "chosen": "", "rejected": ""})).1.contains("DPO"));
    }

    #[test]
    fn wrong_types_name_the_field() {
        assert_eq!(refusal(json!({"text": null})).0, "text");
        assert_eq!(refusal(json!({"prompt": "a", "completion": 5})).0, "completion");
        assert_eq!(refusal(json!({"input_ids": [1, 1.5]})).0, "input_ids[1]");
        assert_eq!(refusal(json!({"input_ids": [1, -1]})).0, "input_ids[1]");
        assert_eq!(refusal(json!({"input_ids": [1], "labels": [1, 2]})).0, "labels");
        assert_eq!(refusal(json!({"input_ids": [1, 2], "labels": [1, 3]})).0, "labels[1]");
        let history = json!({"instruction": "", "output": "", "history": [["a"]]});
        assert_eq!(refusal(history).0, "history[0]");
    }

    #[test]
    fn padding_is_dropped_wherever_it_stands() {
        let ids = json!({"input_ids": [9, 5, 9, 6], "attention_mask": [0, 1, 0, 1],
            "labels": [-100, -100, -100, 6]});
        let want = Record::Ids { ids: vec![5, 6], supervised: vec![false, true] };
        assert_eq!(read(&ids), Ok(vec![want]));
    }
}
