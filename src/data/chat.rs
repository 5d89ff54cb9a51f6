//! Conversations from the three ways in which data files write them.
//!
//! The result is OpenAI's form, which chat templates expect: objects with `role` and `content` (a
//! string), `tool_calls` and `reasoning_content` where there are any. Lists of typed parts become
//! strings; ShareGPT's speakers become roles; keys that are unknown here go to the template as they
//! are.

use serde_json::{Map, Value, json};

use super::record::{Refusal, optional_string, string};

/// A conversation and which of its turns are taught.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chat {
    /// Objects with `role` and `content`.
    pub messages: Vec<Value>,
    /// For each message whether its tokens are targets; only assistant turns can be.
    pub taught: Vec<bool>,
    /// Tool schemas, a list.
    pub tools: Option<Value>,
}

impl Chat {
    /// A conversation without tools of which the last message is taught.
    pub fn answer_last(messages: Vec<Value>) -> Self {
        let mut taught = vec![false; messages.len()];
        if let Some(last) = taught.last_mut() {
            *last = true;
        }
        Self { messages, taught, tools: None }
    }
}

/// `{"messages": [{"role", "content"}], "tools"?}`.
pub(super) fn from_messages(object: &Map<String, Value>) -> Result<Chat, Refusal> {
    let (messages, taught) = messages(object, "messages")?;
    let tools = tools(object)?;
    Ok(Chat { messages, taught, tools })
}

/// `{"prompt": messages, "completion": messages, "tools"?}`: the completion's turns are taught.
pub(super) fn from_prompt(object: &Map<String, Value>) -> Result<Chat, Refusal> {
    let (mut all, prompt_taught) = messages(object, "prompt")?;
    let (completion, completion_taught) = messages(object, "completion")?;
    let mut taught = vec![false; prompt_taught.len()];
    taught.extend(completion_taught);
    all.extend(completion);
    let tools = tools(object)?;
    Ok(Chat { messages: all, taught, tools })
}

/// ShareGPT: `{"conversations": [{"from", "value"}], "system"?, "tools"?}`.
pub(super) fn from_conversations(object: &Map<String, Value>) -> Result<Chat, Refusal> {
    let turns = list(object, "conversations")?;
    let mut all = Vec::new();
    if let Some(system) = optional_string(object, "system")?.filter(|text| !text.is_empty()) {
        all.push(json!({"role": "system", "content": system}));
    }
    let mut taught = vec![false; all.len()];
    for (index, turn) in turns.iter().enumerate() {
        let field = format!("conversations[{index}]");
        let turn = as_object(turn, &field)?;
        let (message, teach) =
            if turn.contains_key("role") { message(turn) } else { sharegpt_turn(turn) }
                .map_err(|refusal| within(&field, refusal))?;
        all.push(message);
        taught.push(teach);
    }
    let tools = tools(object)?;
    Ok(Chat { messages: all, taught, tools })
}

fn messages(object: &Map<String, Value>, key: &str) -> Result<(Vec<Value>, Vec<bool>), Refusal> {
    let mut all = (Vec::new(), Vec::new());
    for (index, value) in list(object, key)?.iter().enumerate() {
        let field = format!("{key}[{index}]");
        let (message, taught) =
            message(as_object(value, &field)?).map_err(|refusal| within(&field, refusal))?;
        all.0.push(message);
        all.1.push(taught);
    }
    Ok(all)
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a Vec<Value>, Refusal> {
    match object.get(key) {
        Some(Value::Array(list)) if list.is_empty() => {
            Err(Refusal::new(key, "is an empty list; write at least one message"))
        }
        Some(Value::Array(list)) => Ok(list),
        _ => Err(Refusal::new(key, "is not a list of messages")),
    }
}

fn as_object<'a>(value: &'a Value, field: &str) -> Result<&'a Map<String, Value>, Refusal> {
    let what = "is not an object with role and content (or from and value)";
    value.as_object().ok_or_else(|| Refusal::new(field, what))
}

fn within(field: &str, inner: Refusal) -> Refusal {
    Refusal::new(format!("{field}.{}", inner.field), inner.what)
}

/// One message in OpenAI's form, and whether it is taught.
fn message(object: &Map<String, Value>) -> Result<(Value, bool), Refusal> {
    let role = string(object, "role")?;
    let mut message = object.clone();
    for key in WEIGHTS {
        message.remove(key);
    }
    add_content(&mut message, object)?;
    check_tool_calls(&mut message)?;
    let taught = role == "assistant" && weight(object)?;
    Ok((Value::Object(message), taught))
}

/// Keys by which a turn says whether it is taught.
const WEIGHTS: [&str; 3] = ["loss_weight", "weight", "train"];

fn weight(object: &Map<String, Value>) -> Result<bool, Refusal> {
    for key in WEIGHTS {
        let taught = match object.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(taught)) => Some(*taught),
            Some(number) => match number.as_f64() {
                Some(0.0) => Some(false),
                Some(1.0) => Some(true),
                _ => None,
            },
        };
        let what = "is neither 0 nor 1 (false nor true); a turn is taught or it is not";
        return taught.ok_or_else(|| Refusal::new(key, what));
    }
    Ok(true)
}

fn add_content(message: &mut Map<String, Value>, from: &Map<String, Value>) -> Result<(), Refusal> {
    let calls = from.get("tool_calls").is_some_and(|calls| !calls.is_null());
    match from.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => add_parts(message, parts),
        None | Some(Value::Null) if calls => {
            message.insert("content".into(), "".into());
            Ok(())
        }
        None => Err(Refusal::new("content", "is missing")),
        Some(Value::Null) => Err(Refusal::new("content", "is null; write a string")),
        Some(_) => Err(Refusal::new("content", "is neither a string nor a list of parts")),
    }
}

/// Typed parts: text is joined, reasoning and tool calls go to their own keys.
fn add_parts(message: &mut Map<String, Value>, parts: &[Value]) -> Result<(), Refusal> {
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for (index, part) in parts.iter().enumerate() {
        let field = format!("content[{index}]");
        let (kind, value) = typed_part(part).ok_or_else(|| {
            Refusal::new(field.clone(), "is not a part like {\"type\": \"text\", \"text\": ...}")
        })?;
        match kind {
            "text" => text.push_str(value),
            "reasoning" | "thinking" => reasoning.push_str(value),
            "tool_call" | "function_call" => calls.push(tool_call(value, &field)?),
            _ => {
                let what =
                    format!("is of type `{}`; only text is trained", crate::error::escape(kind));
                return Err(Refusal::new(field, what));
            }
        }
    }
    message.insert("content".into(), text.into());
    if !reasoning.is_empty() {
        message.insert("reasoning_content".into(), reasoning.into());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    Ok(())
}

fn typed_part(part: &Value) -> Option<(&str, &str)> {
    let kind = part.get("type")?.as_str()?;
    let value = part.get(kind).or_else(|| part.get("value"));
    Some((kind, value.and_then(Value::as_str).unwrap_or_default()))
        .filter(|_| value.is_some_and(Value::is_string) || !matches!(kind, "text" | "tool_call"))
}

/// `{"name", "arguments"}` as JSON text becomes a tool call.
fn tool_call(text: &str, field: &str) -> Result<Value, Refusal> {
    let what = "is not JSON text with name and arguments";
    let call: Value = serde_json::from_str(text).map_err(|_| Refusal::new(field, what))?;
    let name = call.get("name").and_then(Value::as_str);
    let name = name.ok_or_else(|| Refusal::new(field, what))?;
    let arguments = call.get("arguments").cloned().unwrap_or_else(|| json!({}));
    let function = json!({"name": name, "arguments": arguments});
    Ok(json!({"type": "function", "function": function}))
}

/// OpenAI writes a call's arguments as JSON text; templates want the object.
fn check_tool_calls(message: &mut Map<String, Value>) -> Result<(), Refusal> {
    let Some(calls) = message.get_mut("tool_calls").filter(|calls| !calls.is_null()) else {
        message.remove("tool_calls");
        return Ok(());
    };
    let calls = calls.as_array_mut();
    for call in calls.ok_or_else(|| Refusal::new("tool_calls", "is not a list"))? {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        let object = arguments.as_str().map(serde_json::from_str::<Value>);
        if let Some(Ok(object @ Value::Object(_))) = object {
            *arguments = object;
        }
    }
    Ok(())
}

fn sharegpt_turn(turn: &Map<String, Value>) -> Result<(Value, bool), Refusal> {
    let (from, value) = (string(turn, "from")?, string(turn, "value")?);
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" | "ipython" => "tool",
        "function_call" | "tool_call" => {
            let message = calls_message(&value)?;
            return Ok((message, weight(turn)?));
        }
        other => {
            let what = format!(
                "is `{}`; known: human, user, gpt, assistant, system, tool, observation, \
                 function_call",
                crate::error::escape(other)
            );
            return Err(Refusal::new("from", what));
        }
    };
    let message = json!({"role": role, "content": value});
    Ok((message, role == "assistant" && weight(turn)?))
}

/// One call, or a JSON list of calls made at once.
fn calls_message(value: &str) -> Result<Value, Refusal> {
    let calls = match serde_json::from_str(value) {
        Ok(Value::Array(calls)) => {
            let call = |call: &Value| tool_call(&call.to_string(), "value");
            calls.iter().map(call).collect::<Result<Vec<_>, _>>()?
        }
        _ => vec![tool_call(value, "value")?],
    };
    Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}))
}

/// A list, or the JSON text of one; bare schemas are wrapped as functions.
fn tools(object: &Map<String, Value>) -> Result<Option<Value>, Refusal> {
    let what = "is neither a list of tool schemas nor the JSON text of one";
    let parsed = match object.get("tools") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(value) => Some(value.clone()),
    };
    let Some(Value::Array(mut tools)) = parsed else {
        return Err(Refusal::new("tools", what));
    };
    for tool in &mut tools {
        if tool.get("name").is_some() && tool.get("function").is_none() {
            *tool = json!({"type": "function", "function": tool.take()});
        }
    }
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn sharegpt_speakers_become_roles_and_calls() {
        let chat = from_conversations(&object(json!({
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}"},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "two"},
            ],
            "tools": "[{\"name\": \"f\"}]",
        })))
        .unwrap();
        let roles: Vec<_> = chat.messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
        assert_eq!(chat.taught, [false, false, true, false, true]);
        assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["arguments"]["a"], 1);
        assert_eq!(chat.tools.unwrap()[0]["function"]["name"], "f");
    }

    #[test]
    fn parts_are_joined_and_weights_are_obeyed() {
        let chat = from_messages(&object(json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]},
            {"role": "assistant", "content": "c", "loss_weight": 0.0},
            {"role": "assistant", "content": "d", "train": true},
            {"role": "user", "content": "e", "weight": 1},
        ]})))
        .unwrap();
        assert_eq!(chat.messages[0]["content"], "ab");
        assert_eq!(chat.taught, [false, false, true, false]);
        assert!(chat.messages[1].get("loss_weight").is_none());
    }

    #[test]
    fn bad_messages_name_the_field() {
        let field = |value: Value| from_messages(&object(value)).unwrap_err().field;
        assert_eq!(field(json!({"messages": []})), "messages");
        assert_eq!(field(json!({"messages": [1]})), "messages[0]");
        assert_eq!(field(json!({"messages": [{"role": 1}]})), "messages[0].role");
        let null = json!({"messages": [{"role": "user", "content": null}]});
        assert_eq!(field(null), "messages[0].content");
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
        assert_eq!(field(image), "messages[0].content[0]");
        let half = json!({"messages": [{"role": "assistant", "content": "", "weight": 0.5}]});
        assert_eq!(field(half), "messages[0].weight");
    }
}
