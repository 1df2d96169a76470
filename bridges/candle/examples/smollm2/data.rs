//! The explanations of Rust's compiler errors as tokens, and their order.

use crate::{Result, fetch};
use candle_core::{Device, Tensor};
use indicatif::ProgressIterator;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tokenizers::Tokenizer;

/// What [`EXPLANATIONS_SHA256`] is of.
const RUSTC: &str = "1.95";
const EXPLANATIONS_SHA256: &str =
    "1ef896aa0fc050763205f05dffaec5460d87d204f1cf05f5a3135af90e053c70";
const CODES: std::ops::RangeInclusive<u16> = 1..=805;
/// The last entries are for evaluation alone.
const HELD_OUT: usize = 40;

const TRAIN: &str = "train.u16";
const EVALUATE: &str = "held_out.u16";

/// The token that ends an answer.
pub const END: &str = "<|im_end|>";

/// What the model is asked about an error.
pub fn question(code: &str) -> String {
    format!("What does the Rust compiler error {code} mean?")
}

/// A question as SmolLM2 was taught to read it.
pub fn prompt(question: &str) -> String {
    format!("<|im_start|>user\n{question}{END}\n<|im_start|>assistant\n")
}

/// Tokens to train on and tokens held out.
#[derive(Debug, PartialEq)]
pub struct Data {
    pub train: Vec<u16>,
    pub held_out: Vec<u16>,
}

impl Data {
    /// Writes the tokens to a folder that has none yet.
    pub fn prepare(dir: &Path, any_rustc: bool) -> Result<()> {
        if dir.join(EVALUATE).exists() {
            return Ok(());
        }
        let path = dir.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(path).map_err(|error| error.to_string())?;
        Data::tokenised(&explanations(any_rustc)?, &tokenizer)?.save(dir)
    }

    fn tokenised(texts: &BTreeMap<String, String>, tokenizer: &Tokenizer) -> Result<Self> {
        let tokens = |(code, text): (&String, &String)| -> Result<Vec<u16>> {
            let pair = format!("{}{text}{END}\n", prompt(&question(code)));
            let encoding = tokenizer.encode(pair, false).map_err(|error| error.to_string())?;
            encoding.get_ids().iter().map(|&id| Ok(u16::try_from(id)?)).collect()
        };
        let mut texts: Vec<_> = texts.iter().map(tokens).collect::<Result<_>>()?;
        let held_out = texts.split_off(texts.len().saturating_sub(HELD_OUT)).concat();
        Ok(Data { train: texts.concat(), held_out })
    }

    pub fn save(&self, dir: &Path) -> Result<()> {
        for (name, tokens) in [(TRAIN, &self.train), (EVALUATE, &self.held_out)] {
            let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
            fs::write(dir.join(name), bytes)?;
        }
        Ok(())
    }

    pub fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Vec<u16>> {
            let path = dir.join(name);
            let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(bytes.chunks_exact(2).map(|id| u16::from_le_bytes([id[0], id[1]])).collect())
        };
        Ok(Data { train: read(TRAIN)?, held_out: read(EVALUATE)? })
    }
}

/// The text of every error code that this machine's rustc explains.
fn explanations(any_rustc: bool) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for code in CODES.progress() {
        let code = format!("E{code:04}");
        let output = Command::new("rustc").args(["--explain", &code]).output();
        let output = output.map_err(|error| format!("rustc did not start: {error}"))?;
        if output.status.success() {
            texts.insert(code, String::from_utf8(output.stdout)?);
        }
    }
    let found = fetch::sha256(&serde_json::to_vec(&texts)?);
    if found != EXPLANATIONS_SHA256 && !any_rustc {
        return Err(format!(
            "this rustc explains {} errors, in other words than {RUSTC} does (SHA-256 {found}): \
             put rustc {RUSTC} first in PATH, or say --any-rustc",
            texts.len()
        )
        .into());
    }
    Ok(texts)
}

/// Where sequences of `seq` tokens start that cover a text once. Each has a token after it.
pub fn starts(tokens: &[u16], seq: usize) -> Result<Vec<usize>> {
    match tokens.len().saturating_sub(1) / seq {
        0 => Err(format!("{} tokens have no sequence of {seq}", tokens.len()).into()),
        count => Ok((0..count).map(|i| i * seq).collect()),
    }
}

/// `count` starts: all of them in a new order in each epoch.
pub fn order(starts: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut rng = Pcg64::seed_from_u64(seed);
    let mut order = Vec::new();
    while order.len() < count {
        let mut epoch = starts.to_vec();
        epoch.shuffle(&mut rng);
        order.extend(epoch);
    }
    order.truncate(count);
    order
}

/// Sequences and, for each of their tokens, the next: both [starts, seq], u32.
pub fn batch(
    tokens: &[u16],
    starts: &[usize],
    seq: usize,
    device: &Device,
) -> candle_core::Result<(Tensor, Tensor)> {
    let rows = |shift: usize| {
        let ids = starts.iter().flat_map(|&at| &tokens[at + shift..at + shift + seq]);
        Tensor::from_iter(ids.map(|&id| u32::from(id)), device)?.reshape((starts.len(), seq))
    };
    Ok((rows(0)?, rows(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_sequence() {
        let starts = starts(&[0; 13], 3).unwrap();
        assert_eq!(starts, [0, 3, 6, 9]);
        let order = order(&starts, 10, 7);
        for epoch in order.chunks(4).take(2) {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            assert_eq!(sorted, starts);
        }
        assert_eq!(order, super::order(&starts, 40, 7)[..10], "a longer run begins alike");
        assert_ne!(order, super::order(&starts, 10, 8));
        assert!(super::starts(&[0; 3], 3).is_err());
    }

    #[test]
    fn targets_are_the_next_tokens() {
        let tokens: Vec<u16> = (10..20).collect();
        let (x, y) = batch(&tokens, &[6, 0], 3, &Device::Cpu).unwrap();
        assert_eq!(x.to_vec2::<u32>().unwrap(), [[16, 17, 18], [10, 11, 12]]);
        assert_eq!(y.to_vec2::<u32>().unwrap(), [[17, 18, 19], [11, 12, 13]]);
    }

    #[test]
    fn tokens_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data { train: vec![0, 258, 49151], held_out: vec![1] };
        data.save(dir.path()).unwrap();
        assert_eq!(Data::load(dir.path()).unwrap(), data);
    }
}
