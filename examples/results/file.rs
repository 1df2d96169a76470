//! What result files have in common.

use serde::Deserialize;
use std::fmt;

/// The machine, the day and the code.
#[derive(Debug, Clone, Deserialize)]
pub struct Header {
    pub card: String,
    driver: String,
    cublaslt: Option<u64>,
    cpu: Option<String>,
    clocks: String,
    pub date: String,
    pub commit: String,
    /// Files of before it was kept have none.
    command: Option<String>,
}

impl Header {
    /// As words of Markdown.
    pub fn conditions(&self) -> String {
        let Header { card, driver, cublaslt, cpu, clocks, date, commit, command } = self;
        let mut words = format!("{card}, driver {driver}");
        words.extend(cublaslt.map(|version| format!(", cuBLASLt {version}")));
        words.extend(cpu.iter().map(|cpu| format!(", {cpu}")));
        if clocks != "unknown" {
            words += &format!(", {clocks}");
        }
        words += &format!("; {date}, commit {commit}");
        words.extend(command.iter().map(|command| format!("; `{command}`")));
        words
    }

    /// The card without its maker and memory: `H100`.
    pub fn short_card(&self) -> &str {
        let name = self.card.strip_prefix("NVIDIA ").unwrap_or(&self.card);
        let memory = name.split(' ').find(|word| word.ends_with("GB") && !word.contains('-'));
        memory.and_then(|memory| name.split(memory).next()).unwrap_or(name).trim_end()
    }
}

/// The d of one projection, or of each that shares the input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
pub enum Outputs {
    One(u64),
    Several(Vec<u64>),
}

impl Outputs {
    pub fn all(&self) -> &[u64] {
        match self {
            Outputs::One(d) => std::slice::from_ref(d),
            Outputs::Several(all) => all,
        }
    }
}

impl fmt::Display for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.all().iter().map(u64::to_string).collect();
        f.write_str(&all.join(" + "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_short_names() {
        for (card, short) in [
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
            ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ] {
            let header = serde_json::json!({
                "card": card, "driver": "", "clocks": "", "date": "", "commit": "",
            });
            let header: Header = serde_json::from_value(header).unwrap();
            assert_eq!(header.short_card(), short);
        }
    }
}
