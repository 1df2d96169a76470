//! Result files of the host benchmark: a row as it is in the file.

use crate::file::{Header, Outputs};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::error::Error;

const EXPLANATION: &str = "\
Medians in µs, without a CUDA graph: *forward*, *backward* and *layer* are the host's time of \
`Forward::run`, `Backward::run`, and both passes of `LoraLinear`; *whole* is host and GPU together \
for the calls of *layer*, with its ratio to the operations in a graph; *make* is the slowest of \
many problems; *launch* is the driver's part for a kernel that does nothing. A bar is what the \
number must not exceed.";

#[derive(Deserialize)]
struct File {
    #[serde(flatten)]
    header: Header,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    op: String,
    #[serde(flatten)]
    layer: Option<Layer>,
    us: f64,
    bar: Option<f64>,
    /// Figures that only some rows have.
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Deserialize)]
struct Layer {
    t: u64,
    k: u64,
    d: Outputs,
    r: u64,
}

/// Markdown.
pub fn section(json: &str) -> Result<String, Box<dyn Error>> {
    let File { header, rows } = serde_json::from_str(json)?;
    let mut text = format!("{}.\n\n{EXPLANATION}\n\n", header.conditions());
    text += "| | T | k → d | r | µs | bar | more |\n|---|---:|---:|---:|---:|---:|---|";
    for Row { op, layer, us, bar, more } in rows {
        let layer = match layer {
            Some(Layer { t, k, d, r }) => format!("{t} | {k} → {d} | {r}"),
            None => " | | ".into(),
        };
        let bar = bar.map_or(String::new(), |bar| bar.to_string());
        let sizes = ["dtype", "t", "k", "d", "r"];
        let more = more.iter().filter(|(name, _)| !sizes.contains(&name.as_str()));
        let more: Vec<String> = more.map(|(name, value)| figure(name, value)).collect();
        text += &format!("\n| {op} | {layer} | {us:.2} | {bar} | {} |", more.join(", "));
    }
    Ok(text + "\n")
}

/// `other stream 7.13`, of `"other_stream_us": 7.126`.
fn figure(name: &str, value: &Value) -> String {
    let words = name.trim_end_matches("_us").replace('_', " ");
    match value {
        Value::Number(number) if number.is_f64() => {
            format!("{words} {:.2}", number.as_f64().unwrap_or(f64::NAN))
        }
        Value::String(text) => text.clone(),
        other => format!("{words} {other}"),
    }
}
