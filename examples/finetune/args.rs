//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

pub const USAGE: &str = "\
Trains a small classifier on upright digits, freezes it, and adapts it to rotated ones with LoRA.

Usage: cargo run --release --example finetune -- [OPTIONS]

  --device cpu|cuda:N  where the adapted layers run [default: cuda:0 if it works, else cpu]
  --rank N             the rank r of each adapter, 1 to 256 [default: 8]
  --alpha X            α of each adapter, whose update is scaled by α/r [default: 16]
  --epochs N           how often LoRA training sees each rotated digit [default: 40]
  --seed N             of the weights, the adapters and the order of training [default: 0]
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
    pub epochs: usize,
    pub seed: u64,
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        let out = PathBuf::from("target/finetune-loss.svg");
        Options { device: None, rank: 8, alpha: 16.0, epochs: 40, seed: 0, out }
    }
}

impl Options {
    /// Reads the arguments after the program's name; `None` if they ask for help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut options = Options::default();
        let mut args = args
            .into_iter()
            .map(|arg| arg.into_string().map_err(|arg| format!("{} is not UTF-8", arg.display())));
        while let Some(arg) = args.next().transpose()? {
            let (name, mut value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (arg.as_str(), None),
            };
            let mut value = || match value.take() {
                Some(value) => Ok(value),
                None => args.next().unwrap_or_else(|| Err(format!("{name} needs a value"))),
            };
            match name {
                "--help" | "-h" => return Ok(None),
                "--device" => options.device = Some(value()?),
                "--rank" => options.rank = number(name, &value()?, COUNT)?,
                "--alpha" => options.alpha = number(name, &value()?, "a number")?,
                "--epochs" => options.epochs = number(name, &value()?, COUNT)?,
                "--seed" => options.seed = number(name, &value()?, COUNT)?,
                "--out" => options.out = value()?.into(),
                _ => return Err(format!("there is no option {arg}")),
            }
        }
        if !(1..=10_000).contains(&options.epochs) {
            return Err(format!("--epochs must be from 1 to 10000, not {}", options.epochs));
        }
        Ok(Some(options))
    }

    /// The run in one line, for the chart.
    pub fn summary(&self, device: &str) -> String {
        let Options { rank, alpha, epochs, seed, .. } = self;
        format!("rank {rank}, α {alpha}, {epochs} epochs, seed {seed}, on {device}")
    }
}

fn number<T: FromStr>(name: &str, text: &str, kind: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} must be {kind}, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_option_is_read() {
        let expected = Options {
            device: Some("cuda:1".into()),
            rank: 4,
            alpha: 0.5,
            epochs: 3,
            seed: 7,
            out: "loss.svg".into(),
        };
        let line = "--device cuda:1 --rank 4 --alpha=0.5 --epochs 3 --seed=7 --out loss.svg";
        assert_eq!(parse(line), Ok(Some(expected)));
        assert_eq!(parse(""), Ok(Some(Options::default())));
        assert_eq!(parse("--rank 4 --help"), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("--rank eight", "--rank must be a whole number from 0 up, not \"eight\""),
            ("--rank=", "--rank must be a whole number from 0 up, not \"\""),
            ("--alpha", "--alpha needs a value"),
            ("--epochs 0", "--epochs must be from 1 to 10000, not 0"),
            ("--lr=1", "there is no option --lr=1"),
            ("8", "there is no option 8"),
        ] {
            assert_eq!(parse(line), Err(expected.to_string()), "{line}");
        }
    }
}
