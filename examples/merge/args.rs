//! The command line.

use crate::names::Rename;
use lexopt::Parser;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

pub const USAGE: &str = "\
Merges a PEFT adapter into a safetensors checkpoint: W0 becomes W0 + s·B A, parameters that the
adapter's file holds in full are replaced or added, and all else stays.

Usage: cargo run --release --features peft --example merge -- --base PATH --adapter DIR --out PATH

  --base PATH          model.safetensors, or a sharded checkpoint's model.safetensors.index.json,
                       or the directory of either; weights of bitsandbytes and in FP8 become
                       16-bit ones
  --adapter DIR        the PEFT directory: adapter_config.json and adapter_model.safetensors; or
                       that of mlx-lm, mistral-finetune or diffusers, or a file of diffusers or
                       kohya's sd-scripts
  --out PATH           the new file; the new directory if the checkpoint is sharded or --base is a
                       directory, with configuration, tokenizer and all else beside the weights
  --scale X            multiplies the adapter's own scale; -1 takes an adapter out [default: 1]
  --device cpu|cuda:N  where bf16 and f16 weights are merged, f32 on the CPU; a GPU rounds A and
                       B to the weight's type first [default: cuda:0 if it works, else cpu]
  --transposed HOW     how square weights are stored, of which shapes cannot tell: yes ([k, d], as
                       GPT-2's Conv1D), no ([d, k]) or auto [default: auto]
  --rename FROM=TO     TO for FROM at the beginning of the adapter's module paths, or anywhere if
                       FROM begins with a dot, where the checkpoint has other names that are not
                       known here; may be repeated, and applies in that order
  --allow-non-finite   merges also where A, B or a merged weight has infinities or NaN
  --dry-run            lists what would change, and writes nothing
  --help               shows this

The output appears under its name when it is whole. A run that is killed leaves a hidden .merging-*
beside it, which the next run into that directory removes.
";

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub base: PathBuf,
    pub adapter: PathBuf,
    /// `None` for a dry run, perhaps.
    pub out: Option<PathBuf>,
    pub scale: f32,
    /// The device's name; `None` for the first GPU if it works and the CPU if not.
    pub device: Option<String>,
    pub transposed: Transposed,
    pub renames: Vec<Rename>,
    pub allow_non_finite: bool,
    pub dry_run: bool,
}

/// How square weights are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Transposed {
    Auto,
    Yes,
    No,
}

impl Options {
    /// Reads the arguments after the program's name; `None` if they ask for help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, lexopt::Error> {
        let (mut base, mut adapter, mut out) = (None, None, None);
        let (mut scale, mut device, mut dry_run) = (1.0, None, false);
        let (mut transposed, mut allow_non_finite) = (Transposed::Auto, false);
        let mut renames = Vec::new();
        let mut parser = Parser::from_args(args);
        // Paths may be anything, so that they are taken as they come.
        while let Some(arg) = parser.next()? {
            match arg {
                Long("help") | Short('h') => return Ok(None),
                Long("base") => base = Some(parser.value()?.into()),
                Long("adapter") => adapter = Some(parser.value()?.into()),
                Long("out") => out = Some(parser.value()?.into()),
                Long("scale") => scale = number(&parser.value()?.string()?)?,
                Long("device") => device = Some(parser.value()?.string()?),
                Long("transposed") => transposed = layout(&parser.value()?.string()?)?,
                Long("rename") => renames.push(Rename::parse(&parser.value()?.string()?)?),
                Long("allow-non-finite") => allow_non_finite = true,
                Long("dry-run") => dry_run = true,
                _ => return Err(arg.unexpected()),
            }
        }
        let base = base.ok_or("--base is missing")?;
        let adapter = adapter.ok_or("--adapter is missing")?;
        if out.is_none() && !dry_run {
            return Err("--out is missing".into());
        }
        Ok(Some(Options {
            base,
            adapter,
            out,
            scale,
            device,
            transposed,
            renames,
            allow_non_finite,
            dry_run,
        }))
    }
}

fn number(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite());
    number.ok_or_else(|| format!("--scale must be a finite number, not {text:?}"))
}

fn layout(text: &str) -> Result<Transposed, String> {
    match text {
        "auto" => Ok(Transposed::Auto),
        "yes" => Ok(Transposed::Yes),
        "no" => Ok(Transposed::No),
        _ => Err(format!("--transposed must be auto, yes or no, not {text:?}")),
    }
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
            base: "b".into(),
            adapter: "a".into(),
            out: Some("o".into()),
            scale: -0.5,
            device: Some("cuda:1".into()),
            transposed: Transposed::Yes,
            renames: vec![
                Rename { from: "a.".into(), to: "".into() },
                Rename { from: "".into(), to: "b=".into() },
            ],
            allow_non_finite: true,
            dry_run: true,
        };
        let line = "--base b --adapter=a --out o --scale -0.5 --device cuda:1 --dry-run \
                    --transposed yes --allow-non-finite --rename a.= --rename==b=";
        assert_eq!(parse(line), Ok(Some(expected.clone())));
        let plain = Options {
            scale: 1.0,
            device: None,
            transposed: Transposed::Auto,
            renames: Vec::new(),
            allow_non_finite: false,
            dry_run: false,
            ..expected
        };
        assert_eq!(parse("--base=b --adapter a --out=o"), Ok(Some(plain)));
        assert_eq!(parse("--base b --help"), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("", "--base is missing"),
            ("--base b", "--adapter is missing"),
            ("--base b --adapter a", "--out is missing"),
            ("--base", "missing argument for option '--base'"),
            ("--scale x", "--scale must be a finite number, not \"x\""),
            ("--scale inf", "--scale must be a finite number, not \"inf\""),
            ("--transposed maybe", "--transposed must be auto, yes or no, not \"maybe\""),
            ("--rename a", "--rename must be FROM=TO, not \"a\""),
            ("--rename a=a", "--rename must be FROM=TO, not \"a=a\""),
            ("--force", "invalid option '--force'"),
        ] {
            assert_eq!(parse(line), Err(expected.to_string()), "{line}");
        }
    }
}
