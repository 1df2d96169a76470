//! The command line.

use lexopt::Parser;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

pub const USAGE: &str = "\
Trains a small classifier on upright digits, freezes it, and adapts it to rotated ones with LoRA.

Usage: cargo run --release --example finetune -- [OPTIONS]

  --device cpu|cuda:N  where the adapted layers run [default: cuda:0 if it works, else cpu]
  --rank N             the rank r of each adapter, 1 to 256 [default: 8]
  --alpha X            α of each adapter, whose update is scaled by α/r [default: 16]
  --dropout P          of the adapters' input in training, 0 up to below 1 [default: 0]
  --epochs N           how often LoRA training sees each rotated digit [default: 40]
  --seed N             of weights, adapters, the order of training and dropout [default: 0]
  --out FILE           where the loss curve goes [default: target/finetune-loss.svg]
  --help               shows this
";

const COUNT: &str = "a whole number from 0 up";

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The device's name; `None` for the first GPU if it works and the CPU if not.
    pub device: Option<String>,
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub epochs: usize,
    pub seed: u64,
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        let out = PathBuf::from("target/finetune-loss.svg");
        Options { device: None, rank: 8, alpha: 16.0, dropout: 0.0, epochs: 40, seed: 0, out }
    }
}

impl Options {
    /// Reads the arguments after the program's name; `None` if they ask for help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, lexopt::Error> {
        let mut options = Options::default();
        let mut parser = Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("help") | Short('h') => return Ok(None),
                Long("device") => options.device = Some(parser.value()?.string()?),
                Long("rank") => options.rank = number("--rank", &mut parser, COUNT)?,
                Long("alpha") => options.alpha = number("--alpha", &mut parser, "a number")?,
                Long("dropout") => options.dropout = number("--dropout", &mut parser, "a number")?,
                Long("epochs") => options.epochs = number("--epochs", &mut parser, COUNT)?,
                Long("seed") => options.seed = number("--seed", &mut parser, COUNT)?,
                Long("out") => options.out = parser.value()?.into(),
                _ => return Err(arg.unexpected()),
            }
        }
        if !(1..=10_000).contains(&options.epochs) {
            return Err(format!("--epochs must be from 1 to 10000, not {}", options.epochs).into());
        }
        let p = options.dropout;
        if !(0.0..1.0).contains(&p) {
            return Err(format!("--dropout must be from 0 up and below 1, not {p}").into());
        }
        Ok(Some(options))
    }

    /// The run in one line, for the chart.
    pub fn summary(&self, device: &str) -> String {
        let Options { rank, alpha, dropout, epochs, seed, .. } = self;
        let dropout = if *dropout > 0.0 { format!("dropout {dropout}, ") } else { String::new() };
        format!("rank {rank}, α {alpha}, {dropout}{epochs} epochs, seed {seed}, on {device}")
    }
}

fn number<T: FromStr>(name: &str, parser: &mut Parser, kind: &str) -> Result<T, lexopt::Error> {
    let text = parser.value()?.string()?;
    text.parse().map_err(|_| format!("{name} must be {kind}, not {text:?}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        let args = line.split_whitespace().map(OsString::from);
        Options::parse(args).map_err(|error| error.to_string())
    }

    #[test]
    fn every_option_is_read() {
        let expected = Options {
            device: Some("cuda:1".into()),
            rank: 4,
            alpha: 0.5,
            dropout: 0.25,
            epochs: 3,
            seed: 7,
            out: "loss.svg".into(),
        };
        let line = "--device cuda:1 --rank 4 --alpha=0.5 --dropout 0.25 --epochs 3 --seed=7 \
            --out loss.svg";
        assert_eq!(parse(line), Ok(Some(expected)));
        assert_eq!(parse(""), Ok(Some(Options::default())));
        assert_eq!(parse("--rank 4 --help"), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("--rank eight", "--rank must be a whole number from 0 up, not \"eight\""),
            ("--rank=", "--rank must be a whole number from 0 up, not \"\""),
            ("--alpha", "missing argument for option '--alpha'"),
            ("--dropout 1", "--dropout must be from 0 up and below 1, not 1"),
            ("--epochs 0", "--epochs must be from 1 to 10000, not 0"),
            ("--lr=1", "invalid option '--lr'"),
            ("8", "unexpected argument \"8\""),
        ] {
            assert_eq!(parse(line), Err(expected.to_string()), "{line}");
        }
    }
}
