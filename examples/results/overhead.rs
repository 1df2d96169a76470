//! Result files of the overhead benchmark.

use crate::file::{Header, Outputs};
use serde::Deserialize;
use std::collections::HashMap;
use std::error::Error;

/// A result file, its rows gathered by layer in the order of the file.
pub struct Overhead {
    pub header: Header,
    /// What the card reads from its memory.
    pub stream_tb_s: f64,
    pub layers: Vec<Layer>,
}

pub struct Layer {
    pub key: Key,
    /// By op.
    pub measured: HashMap<String, Measured>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Key {
    pub t: u64,
    pub k: u64,
    pub d: Outputs,
    pub r: u64,
    pub dtype: String,
}

#[derive(Deserialize)]
pub struct Measured {
    pub us: f64,
    pub base_us: f64,
    pub ratio: f64,
    pub path: String,
}

#[derive(Deserialize)]
struct Row {
    op: String,
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    measured: Measured,
}

#[derive(Deserialize)]
struct File {
    #[serde(flatten)]
    header: Header,
    stream_tb_s: f64,
    rows: Vec<Row>,
}

impl Key {
    pub fn weight(&self) -> String {
        format!("{} → {}", self.k, self.d)
    }
}

impl Layer {
    pub fn ratio(&self, op: &str) -> Option<f64> {
        self.measured.get(op).map(|m| m.ratio)
    }

    /// The code that serves this pass.
    pub fn path(&self, op: &str) -> Option<&str> {
        self.measured.get(op).map(|m| m.path.as_str())
    }
}

impl Overhead {
    pub fn read(json: &str) -> Result<Self, Box<dyn Error>> {
        let File { header, stream_tb_s, rows } = serde_json::from_str(json)?;
        let mut layers: Vec<Layer> = Vec::new();
        for Row { op, key, measured } in rows {
            let at = layers.iter().position(|layer| layer.key == key).unwrap_or(layers.len());
            if at == layers.len() {
                layers.push(Layer { key, measured: HashMap::new() });
            }
            layers[at].measured.insert(op, measured);
        }
        if layers.is_empty() {
            return Err("there are no rows in it".into());
        }
        Ok(Overhead { header, stream_tb_s, layers })
    }

    /// Whether some layer is there at four or more T, the greatest at least 16 times the least.
    pub fn follow_tokens(&self) -> bool {
        let same_but_t = |a: &Key, b: &Key| Key { t: b.t, ..a.clone() } == *b;
        self.layers.iter().any(|one| {
            let others = self.layers.iter().filter(|other| same_but_t(&one.key, &other.key));
            let tokens = sorted(others.map(|other| other.key.t));
            tokens.len() >= 4 && tokens[tokens.len() - 1] >= 16 * tokens[0]
        })
    }

    /// Whether all of it is by the kernels that serve every GPU.
    pub fn is_generic(&self) -> bool {
        let paths = self.layers.iter().filter_map(|layer| layer.path("forward"));
        paths.clone().next().is_some() && paths.into_iter().all(|path| path.starts_with("mma"))
    }

    /// The element types in the file, which is one unless somebody joined files.
    pub fn dtypes(&self) -> String {
        let mut dtypes: Vec<&str> = self.layers.iter().map(|l| l.key.dtype.as_str()).collect();
        dtypes.dedup();
        dtypes.join(", ")
    }
}

/// Each value once, from the least to the greatest.
pub fn sorted(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Overhead for some layers, for the tests: `op` of each (t, k, d, r) with a time and a base.
#[cfg(test)]
pub fn sample(rows: &[(&str, [u64; 4], [f64; 2])]) -> Overhead {
    sample_of(rows.iter().map(|(op, [t, k, d, r], us)| (*op, [*t, *k, *r], (*d).into(), *us)))
}

/// The same where d may be several.
#[cfg(test)]
pub fn sample_of<'a>(
    rows: impl Iterator<Item = (&'a str, [u64; 3], serde_json::Value, [f64; 2])>,
) -> Overhead {
    let rows: Vec<_> = rows
        .map(|(op, [t, k, r], d, [us, base_us])| {
            serde_json::json!({
                "op": op, "dtype": "bf16", "t": t, "k": k, "d": d, "r": r,
                "us": us, "base_us": base_us, "ratio": us / base_us, "path": "mma",
            })
        })
        .collect();
    let file = serde_json::json!({
        "card": "a card", "driver": "1", "cublaslt": 1, "clocks": "unknown", "date": "a day",
        "commit": "none", "stream_tb_s": 3.2, "rows": rows,
    });
    Overhead::read(&file.to_string()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a file follows its tokens that has these (t, r).
    fn follow(layers: &[(u64, u64)]) -> bool {
        let row = |&(t, r)| ("forward", [t, 64, 64, r], [1.0, 1.0]);
        sample(&layers.iter().map(row).collect::<Vec<_>>()).follow_tokens()
    }

    #[test]
    fn tokens_are_followed_at_four_t_that_span_16() {
        assert!(follow(&[(1, 8), (2, 8), (4, 8), (16, 8)]));
        assert!(follow(&[(300, 8), (16, 8), (1, 8), (2, 8)]), "in any order");
        assert!(follow(&[(1, 64), (1, 8), (2, 8), (4, 8), (16, 8)]), "one rank is enough");
        assert!(!follow(&[(1, 8), (2, 8), (4, 8), (8, 8)]), "they span 8");
        assert!(!follow(&[(2, 8), (3, 8), (4, 8), (31, 8)]), "they span 15.5");
        assert!(!follow(&[(1, 8), (2, 8), (1024, 8)]), "three");
        assert!(!follow(&[(1, 8), (2, 8), (4, 64), (16, 64)]), "two of each rank");
        assert!(!follow(&[(1, 8), (1, 64), (16, 8), (16, 64)]), "two of each rank");
    }

    #[test]
    fn rows_of_a_layer_are_gathered() {
        let results = sample(&[
            ("frozen", [1, 64, 64, 8], [1.0, 1.0]),
            ("forward", [2, 64, 64, 8], [1.0, 1.0]),
            ("forward", [1, 64, 64, 8], [3.0, 2.0]),
        ]);
        assert_eq!(results.layers.len(), 2);
        assert_eq!(results.layers[0].ratio("forward"), Some(1.5));
        assert_eq!(results.layers[1].ratio("frozen"), None);
    }
}
