//! A result file, as `benches/overhead/report.rs` writes it.

use serde_json::Value;
use std::collections::HashMap;
use std::error::Error;

/// A result file, its rows gathered by layer in the order of the file.
pub struct Results {
    pub header: HashMap<&'static str, String>,
    /// What the card reads from its memory.
    pub stream_tb_s: f64,
    pub layers: Vec<Layer>,
}

pub struct Layer {
    pub key: Key,
    /// By op.
    pub measured: HashMap<String, Measured>,
}

#[derive(Clone, PartialEq)]
pub struct Key {
    pub dtype: String,
    pub t: u64,
    pub k: u64,
    /// One, or one of each projection that shares the input.
    pub d: Vec<u64>,
    pub r: u64,
}

impl Key {
    /// The d of all, in words.
    pub fn outputs(&self) -> String {
        self.d.iter().map(u64::to_string).collect::<Vec<_>>().join(" + ")
    }
}

pub struct Measured {
    pub us: f64,
    pub base_us: f64,
    pub ratio: f64,
    pub path: String,
}

impl Layer {
    pub fn ratio(&self, op: &str) -> Option<f64> {
        self.measured.get(op).map(|m| m.ratio)
    }
}

impl Results {
    pub fn read(json: &str) -> Result<Self, Box<dyn Error>> {
        let file: Value = serde_json::from_str(json)?;
        let mut header = HashMap::new();
        for field in ["card", "driver", "cublaslt", "clocks", "date", "commit", "stream_tb_s"] {
            let text = match file.get(field).ok_or(format!("there is no `{field}`"))? {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            header.insert(field, text);
        }
        let stream_tb_s = file["stream_tb_s"].as_f64().ok_or("`stream_tb_s` is no number")?;
        let mut layers: Vec<Layer> = Vec::new();
        for row in file["rows"].as_array().ok_or("there are no `rows`")? {
            let text = |field| row[field].as_str().ok_or(format!("a row has no `{field}`"));
            let count = |field| row[field].as_u64().ok_or(format!("a row has no `{field}`"));
            let number = |field| row[field].as_f64().ok_or(format!("a row has no `{field}`"));
            let key = Key {
                dtype: text("dtype")?.to_string(),
                t: count("t")?,
                k: count("k")?,
                d: match &row["d"] {
                    Value::Array(all) => all.iter().map(Value::as_u64).collect(),
                    one => one.as_u64().map(|d| vec![d]),
                }
                .ok_or("a row has no `d`")?,
                r: count("r")?,
            };
            let measured = Measured {
                us: number("us")?,
                base_us: number("base_us")?,
                ratio: number("ratio")?,
                path: text("path")?.to_string(),
            };
            let at = layers.iter().position(|layer| layer.key == key).unwrap_or(layers.len());
            if at == layers.len() {
                layers.push(Layer { key, measured: HashMap::new() });
            }
            layers[at].measured.insert(text("op")?.to_string(), measured);
        }
        if layers.is_empty() {
            return Err("there are no rows in it".into());
        }
        Ok(Results { header, stream_tb_s, layers })
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

    /// Whether its layers are projections that share their input.
    pub fn share_inputs(&self) -> bool {
        self.layers.iter().any(|layer| layer.key.d.len() > 1)
    }

    /// The element types in the file, which is one unless somebody joined files.
    pub fn dtypes(&self) -> String {
        let mut dtypes: Vec<&str> = self.layers.iter().map(|l| l.key.dtype.as_str()).collect();
        dtypes.dedup();
        dtypes.join(", ")
    }

    pub fn conditions(&self) -> String {
        let of = |field| &self.header[field];
        format!(
            "{}, {}, driver {}, cuBLASLt {}, {}, reads {} TB/s; {}, commit {}",
            of("card"),
            self.dtypes(),
            of("driver"),
            of("cublaslt"),
            of("clocks"),
            of("stream_tb_s"),
            of("date"),
            of("commit"),
        )
    }
}

/// Each value once, from the least to the greatest.
pub fn sorted(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Results for some layers, for the tests: `op` of each (t, k, d, r) with a time and a base.
#[cfg(test)]
pub fn sample(rows: &[(&str, [u64; 4], [f64; 2])]) -> Results {
    sample_of(rows.iter().map(|(op, [t, k, d, r], us)| (*op, [*t, *k, *r], (*d).into(), *us)))
}

/// The same where d may be several.
#[cfg(test)]
pub fn sample_of<'a>(rows: impl Iterator<Item = (&'a str, [u64; 3], Value, [f64; 2])>) -> Results {
    let rows: Vec<Value> = rows
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
    Results::read(&file.to_string()).unwrap()
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
