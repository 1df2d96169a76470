//! The command line.

use crate::common::args;
use crate::common::shapes::{self, Dims};
use lexopt::{Error, Parser, ValueExt};
use lora_kernels::DType;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Options {
    pub shapes: Vec<Dims>,
    pub dtype: DType,
    pub rounds: usize,
    pub json: Option<PathBuf>,
    /// Whether only the kernels that serve every GPU are timed.
    pub generic: bool,
    /// The probability of dropout that is timed beside none.
    pub dropout: Option<f32>,
}

impl args::Options for Options {
    const BENCHMARK: &'static str = "overhead";

    fn usage() -> String {
        format!(
            "usage: cargo bench --bench overhead -- [OPTION...]\n  \
             --shapes SET       {} or TxKxDxR,... (default: quick), or TxKxD+DxR\n  \
             --dtype bf16|f16   default: bf16\n  \
             --rounds N         rounds that count (default: 15)\n  \
             --dropout P        also time dropout with probability P\n  \
             --json FILE        also write the results there, after every shape\n  \
             --kernels SET      all, or generic: kernels that serve every GPU (default: all)",
            shapes::SETS
        )
    }

    fn defaults() -> Self {
        let shapes = shapes::parse("quick").expect("a set");
        Options {
            shapes,
            dtype: DType::Bf16,
            rounds: 15,
            json: None,
            generic: false,
            dropout: None,
        }
    }

    fn only_test() -> Self {
        let shapes = shapes::parse(shapes::SMALL).expect("sizes");
        Options { shapes, rounds: 1, ..Options::defaults() }
    }

    fn set(&mut self, option: &str, parser: &mut Parser) -> Result<(), Error> {
        match option {
            "shapes" => self.shapes = shapes::parse(&parser.value()?.string()?)?,
            "dtype" => {
                let text = parser.value()?.string()?;
                let dtype = text.parse().ok().filter(|&dtype| dtype != DType::F32);
                self.dtype = dtype.ok_or(format!("`{text}` is neither bf16 nor f16"))?;
            }
            "rounds" => self.rounds = args::count(parser, "rounds")?,
            "dropout" => {
                let p = parser.value()?.parse()?;
                self.dropout = Some(p);
            }
            "json" => self.json = Some(parser.value()?.into()),
            "kernels" => {
                self.generic = match parser.value()?.string()?.as_str() {
                    "all" => false,
                    "generic" => true,
                    text => return Err(format!("`{text}` is neither all nor generic").into()),
                }
            }
            _ => return Err(args::unknown(option)),
        }
        Ok(())
    }
}
