//! Puts a job's typed inputs in place of `${{ job.inputs.NAME }}` wherever its scripts and settings name them. Pure.

use serde_json::Value;

use crate::gitlab::wire::JobPayload;

/// Parts of a payload that may name inputs.
const PARTS: [&str; 7] = ["steps", "hooks", "artifacts", "cache", "image", "services", "variables"];

/// The job with its inputs in place; a job without inputs is left as it is.
///
/// # Errors
/// A sentence that names an input the job does not have.
pub fn in_place(job: JobPayload) -> Result<JobPayload, String> {
    if job.inputs.is_empty() {
        return Ok(job);
    }
    let inputs = job.inputs.clone();
    let mut payload =
        serde_json::to_value(job).map_err(|error| format!("the job cannot be read: {error}"))?;
    for part in PARTS {
        if let Some(value) = payload.get_mut(part) {
            walk(value, &inputs)?;
        }
    }
    serde_json::from_value(payload).map_err(|error| format!("the job's inputs do not fit into it: {error}"))
}

fn walk(value: &mut Value, inputs: &[Value]) -> Result<(), String> {
    match value {
        Value::String(text) => *text = expand(text, inputs)?,
        Value::Array(all) => all.iter_mut().try_for_each(|each| walk(each, inputs))?,
        Value::Object(fields) => fields.values_mut().try_for_each(|each| walk(each, inputs))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// The text with each reference to an input replaced; what is no such reference is left.
fn expand(text: &str, inputs: &[Value]) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        out.push_str(before);
        let named = after
            .split_once("}}")
            .and_then(|(inside, after)| Some((inside.trim().strip_prefix("job.inputs.")?, after)));
        match named {
            Some((name, after)) => {
                out.push_str(&content(name, inputs)?);
                rest = after;
            }
            None => {
                out.push_str("${{");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// An input's value as text: a list or an object as JSON.
fn content(name: &str, inputs: &[Value]) -> Result<String, String> {
    let named = |input: &&Value| input.get("key").and_then(Value::as_str) == Some(name);
    // The last of equal names wins, as with variables.
    let input = inputs.iter().rev().find(named);
    let value = input.and_then(|input| input.pointer("/value/content"));
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) => Ok(String::new()),
        Some(other) => Ok(other.to_string()),
        None => {
            let all = inputs.iter().filter_map(|input| input.get("key").and_then(Value::as_str));
            let all = all.collect::<Vec<_>>().join(", ");
            Err(format!("the job names the input {name:?}, which it does not have: its inputs are {all}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn job(fields: Value) -> JobPayload {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn inputs_of_any_type_take_their_places() {
        let placed = in_place(job(json!({
            "id": 1,
            "inputs": [
                {"key": "name", "value": {"content": "world", "type": "string"}},
                {"key": "count", "value": {"content": 3, "type": "number"}},
                {"key": "list", "value": {"content": ["a", 1], "type": "array"}},
            ],
            "steps": [{"name": "script", "script": [
                "echo hello ${{ job.inputs.name }}${{job.inputs.count}}", "echo '${{ job.inputs.list }}' ${{ other }} ${{",
            ]}],
            "variables": [{"key": "TARGET", "value": "to ${{ job.inputs.name }}"}],
        })))
        .unwrap();
        assert_eq!(placed.steps[0].script, ["echo hello world3", "echo '[\"a\",1]' ${{ other }} ${{"]);
        assert_eq!(placed.variable("TARGET"), Some("to world"));
    }

    #[test]
    fn an_input_that_is_not_there_is_named() {
        let why = in_place(job(json!({
            "id": 1,
            "inputs": [{"key": "a", "value": {"content": "x"}}],
            "steps": [{"name": "script", "script": ["${{ job.inputs.b }}"]}],
        })))
        .unwrap_err();
        assert!(why.contains("\"b\"") && why.contains("its inputs are a"), "{why}");
    }

    #[test]
    fn without_inputs_nothing_is_replaced() {
        let fields = json!({"id": 1, "steps": [{"name": "script", "script": ["${{ job.inputs.b }}"]}]});
        assert_eq!(in_place(job(fields)).unwrap().steps[0].script, ["${{ job.inputs.b }}"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(\\$\\{\\{|\\}\\}| job\\.inputs\\.a |[a-z $]){0,12}") {
            let inputs = [json!({"key": "a", "value": {"content": "${{ job.inputs.a }}"}})];
            let _expanded = expand(&text, &inputs);
        }
    }
}
