//! The command line.

use crate::shapes::{self, Dims};
use lora_kernels::DType;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Options {
    pub shapes: Vec<Dims>,
    pub dtype: DType,
    pub rounds: usize,
    pub json: Option<PathBuf>,
    /// One round on small layers, to see that the benchmark works.
    pub only_test: bool,
}

pub enum Parsed {
    Run(Options),
    Help,
}

pub fn usage() -> String {
    format!(
        "usage: cargo bench --bench overhead -- [OPTION...]\n  \
         --shapes SET       {} or TxKxDxR,... (default: quick), or TxKxD+DxR\n  \
         --dtype bf16|f16   default: bf16\n  \
         --rounds N         rounds that count (default: 15)\n  \
         --json FILE        also write the results there, after every shape",
        shapes::SETS
    )
}

/// `cargo bench` adds `--bench`. Without it this is `cargo test`, whose arguments are meant for
/// test harnesses: they are ignored, and the benchmark only tests itself, on small layers.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Parsed, String> {
    let mut args: Vec<String> = args.collect();
    let mut options = Options {
        shapes: shapes::parse("quick")?,
        dtype: DType::Bf16,
        rounds: 15,
        json: None,
        only_test: false,
    };
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Ok(Parsed::Help);
    }
    if !args.iter().any(|arg| arg == "--bench") {
        let shapes = shapes::parse(shapes::SMALL)?;
        return Ok(Parsed::Run(Options { shapes, rounds: 1, only_test: true, ..options }));
    }
    args.retain(|arg| arg != "--bench");

    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        // Both `--option value` and `--option=value`.
        let (option, attached) = match arg.split_once('=') {
            Some((option, value)) => (option.to_string(), Some(value.to_string())),
            None => (arg, None),
        };
        let mut value =
            || attached.clone().or_else(|| args.next()).ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--shapes" => options.shapes = shapes::parse(&value()?)?,
            "--dtype" => {
                options.dtype = match value()?.as_str() {
                    "bf16" => DType::Bf16,
                    "f16" => DType::F16,
                    other => return Err(format!("`{other}` is neither bf16 nor f16")),
                }
            }
            "--rounds" => {
                let rounds = value()?;
                options.rounds = match rounds.parse() {
                    Ok(rounds) if rounds > 0 => rounds,
                    _ => return Err(format!("`{rounds}` is not a number of rounds")),
                }
            }
            "--json" => options.json = Some(value()?.into()),
            _ => return Err(format!("unknown option `{option}`")),
        }
    }
    Ok(Parsed::Run(options))
}
