//! The command line.

use candle_core::DType;
use lexopt::Parser;
use lexopt::prelude::*;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

pub const USAGE: &str = "\
Fine-tunes SmolLM2-135M-Instruct on the explanations of Rust's compiler errors, with LoRA.

Usage: cargo run --release --example smollm2 -- [OPTIONS]

  --model DIR           where model and data are kept [default: target/smollm2]
  --out DIR             where the run goes [default: target/smollm2-run]
  --prepare             downloads, converts and tokenises only
  --any-rustc           takes the explanations of any rustc, not of 1.95 alone
  --random-tiny         a tiny random model and random tokens instead, without a download

  --device cpu|cuda[:N] [default: cpu]
  --dtype bf16|f16|f32  of the frozen model [default: bf16 on CUDA, f32 on the CPU]
  --baseline plain      LoRA by candle's own operations, to compare with
  --rank N              [default: 16]
  --alpha X             the update is scaled by α/r [default: 32]
  --targets A,B,..      adapted layers, such as q_proj,v_proj [default: all seven]
  --lr X                [default: 5e-4]
  --dropout P           of the adapters' input while training, below 1 [default: 0]
  --seed N              of the adapter, the order of the data and dropout [default: 0]
  --batch N             sequences a step [default: 8]
  --seq N               tokens a sequence [default: 512]
  --steps N             [default: 96]
  --every N             steps between evaluations and checkpoints [default: 8]
  --held-out N          sequences of an evaluation [default: all there are]
  --resume              goes on from the checkpoint in --out

  --question TEXT       asked before and after [default: about E0382]
  --answer N            at most so many tokens of an answer, 0 for none [default: 96]
  --json FILE           where the figures go
  --phases              also times the parts of a step, each until the GPU has done it
  --help                shows this
";

pub const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

const COUNT: &str = "a whole number from 0 up";

/// What the bits of a trained adapter depend on, besides the device. A checkpoint resumes with the
/// same settings only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub random_tiny: bool,
    /// Candle's own operations instead of the kernels.
    pub plain: bool,
    pub rank: usize,
    pub alpha: f32,
    pub targets: Vec<String>,
    pub lr: f64,
    #[serde(default)]
    pub dropout: f64,
    pub seed: u64,
    pub batch: usize,
    pub seq: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub settings: Settings,
    pub model: PathBuf,
    pub out: PathBuf,
    pub prepare: bool,
    pub any_rustc: bool,
    pub device: String,
    pub dtype: Option<DType>,
    pub steps: usize,
    pub every: usize,
    /// Sequences of an evaluation, at most.
    pub held_out: usize,
    pub resume: bool,
    pub question: String,
    pub answer: usize,
    pub json: Option<PathBuf>,
    pub phases: bool,
}

impl Default for Options {
    fn default() -> Self {
        let settings = Settings {
            random_tiny: false,
            plain: false,
            rank: 16,
            alpha: 32.0,
            targets: TARGETS.map(String::from).to_vec(),
            lr: 5e-4,
            dropout: 0.0,
            seed: 0,
            batch: 8,
            seq: 512,
        };
        Options {
            settings,
            model: "target/smollm2".into(),
            out: "target/smollm2-run".into(),
            prepare: false,
            any_rustc: false,
            device: "cpu".into(),
            dtype: None,
            steps: 96,
            every: 8,
            held_out: usize::MAX,
            resume: false,
            question: crate::data::question("E0382"),
            answer: 96,
            json: None,
            phases: false,
        }
    }
}

impl Options {
    /// Reads the arguments after the program's name; `None` if they ask for help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, lexopt::Error> {
        let mut options = Options::default();
        let mut parser = Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            let settings = &mut options.settings;
            match arg {
                Long("help") | Short('h') => return Ok(None),
                Long("model") => options.model = parser.value()?.into(),
                Long("out") => options.out = parser.value()?.into(),
                Long("prepare") => options.prepare = true,
                Long("any-rustc") => options.any_rustc = true,
                Long("random-tiny") => settings.random_tiny = true,
                Long("device") => options.device = parser.value()?.string()?,
                Long("dtype") => options.dtype = Some(dtype(&mut parser)?),
                Long("baseline") => match parser.value()?.string()?.as_str() {
                    "plain" => settings.plain = true,
                    other => return Err(format!("--baseline must be plain, not {other:?}").into()),
                },
                Long("rank") => settings.rank = number("--rank", &mut parser, COUNT)?,
                Long("alpha") => settings.alpha = number("--alpha", &mut parser, "a number")?,
                Long("targets") => settings.targets = targets(&mut parser)?,
                Long("lr") => settings.lr = number("--lr", &mut parser, "a number")?,
                Long("dropout") => {
                    settings.dropout = number("--dropout", &mut parser, "a number")?;
                }
                Long("seed") => settings.seed = number("--seed", &mut parser, COUNT)?,
                Long("batch") => settings.batch = number("--batch", &mut parser, COUNT)?,
                Long("seq") => settings.seq = number("--seq", &mut parser, COUNT)?,
                Long("steps") => options.steps = number("--steps", &mut parser, COUNT)?,
                Long("every") => options.every = number("--every", &mut parser, COUNT)?,
                Long("held-out") => options.held_out = number("--held-out", &mut parser, COUNT)?,
                Long("resume") => options.resume = true,
                Long("question") => options.question = parser.value()?.string()?,
                Long("answer") => options.answer = number("--answer", &mut parser, COUNT)?,
                Long("phases") => options.phases = true,
                Long("json") => options.json = Some(parser.value()?.into()),
                _ => return Err(arg.unexpected()),
            }
        }
        let Settings { batch, seq, dropout, .. } = &options.settings;
        if !(0.0..1.0).contains(dropout) {
            return Err(format!("--dropout must be from 0 up and below 1, not {dropout}").into());
        }
        let every = options.every;
        let held_out = options.held_out;
        for (name, value) in
            [("batch", *batch), ("seq", *seq), ("every", every), ("held-out", held_out)]
        {
            if value == 0 {
                return Err(format!("--{name} must be at least 1").into());
            }
        }
        Ok(Some(options))
    }
}

fn number<T: FromStr>(name: &str, parser: &mut Parser, kind: &str) -> Result<T, lexopt::Error> {
    let text = parser.value()?.string()?;
    text.parse().map_err(|_| format!("{name} must be {kind}, not {text:?}").into())
}

fn dtype(parser: &mut Parser) -> Result<DType, lexopt::Error> {
    match parser.value()?.string()?.as_str() {
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        "f32" => Ok(DType::F32),
        other => Err(format!("--dtype must be bf16, f16 or f32, not {other:?}").into()),
    }
}

/// In the order of [`TARGETS`], each once.
fn targets(parser: &mut Parser) -> Result<Vec<String>, lexopt::Error> {
    let text = parser.value()?.string()?;
    let named: Vec<&str> = text.split(',').collect();
    if let Some(other) = named.iter().find(|name| !TARGETS.contains(name)) {
        return Err(format!("--targets has {other:?}: expected {}", TARGETS.join(", ")).into());
    }
    Ok(TARGETS.iter().filter(|name| named.contains(name)).map(|name| name.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        let args = line.split_whitespace().map(OsString::from);
        Options::parse(args).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read() {
        assert_eq!(parse(""), Ok(Some(Options::default())));
        assert_eq!(parse("--rank 4 --help"), Ok(None));
        let mut expected = Options::default();
        expected.settings.dropout = 0.1;
        assert_eq!(parse("--dropout 0.1"), Ok(Some(expected)));
        let line = "--baseline plain --targets v_proj,q_proj --lr=1e-3 --dtype bf16 --json f.json";
        let mut expected = Options::default();
        expected.settings.plain = true;
        expected.settings.targets = vec!["q_proj".into(), "v_proj".into()];
        expected.settings.lr = 1e-3;
        expected.dtype = Some(DType::BF16);
        expected.json = Some("f.json".into());
        assert_eq!(parse(line), Ok(Some(expected)));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("--rank eight", "--rank must be a whole number from 0 up, not \"eight\""),
            ("--dtype f64", "--dtype must be bf16, f16 or f32, not \"f64\""),
            ("--baseline torch", "--baseline must be plain, not \"torch\""),
            ("--dropout 1", "--dropout must be from 0 up and below 1, not 1"),
            ("--dropout NaN", "--dropout must be from 0 up and below 1, not NaN"),
            ("--batch 0", "--batch must be at least 1"),
            ("--lr", "missing argument for option '--lr'"),
            ("8", "unexpected argument \"8\""),
        ] {
            assert_eq!(parse(line), Err(expected.to_string()), "{line}");
        }
        let error = parse("--targets q_proj,lm_head").unwrap_err();
        assert!(error.starts_with("--targets has \"lm_head\": expected q_proj, k_proj"), "{error}");
    }
}
