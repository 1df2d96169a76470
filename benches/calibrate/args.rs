//! The command line.

use crate::common::args;
use crate::common::shapes::{self, Dims};
use lexopt::{Error, Parser, ValueExt};
use std::path::PathBuf;

#[derive(Debug)]
pub struct Options {
    pub shapes: Vec<Dims>,
    /// Schedules up to this many times the best prediction are timed.
    pub within: f64,
    pub rounds: usize,
    pub json: Option<PathBuf>,
    pub fit: Option<PathBuf>,
}

impl args::Options for Options {
    const BENCHMARK: &'static str = "calibrate";

    fn usage() -> String {
        format!(
            "usage: cargo bench --bench calibrate -- [OPTION...]\n  \
             --shapes SET       {} or TxKxDxR,... (default: calibrate)\n  \
             --within F         times the best prediction, 1 or more (default: 1.3)\n  \
             --rounds N         rounds that count (default: 9)\n  \
             --json FILE        also write the results there, after every shape\n  \
             --fit FILE         fit the cost model to such a file instead",
            shapes::SETS
        )
    }

    fn defaults() -> Self {
        let shapes = shapes::parse("calibrate").expect("a set");
        Options { shapes, within: 1.3, rounds: 9, json: None, fit: None }
    }

    fn only_test() -> Self {
        let shapes = shapes::parse("300x512x384x16").expect("sizes");
        Options { shapes, rounds: 1, ..Options::defaults() }
    }

    fn set(&mut self, option: &str, parser: &mut Parser) -> Result<(), Error> {
        match option {
            "shapes" => self.shapes = shapes::parse(&parser.value()?.string()?)?,
            "within" => {
                let text = parser.value()?.string()?;
                let within = text.parse().ok().filter(|&within: &f64| within >= 1.0);
                self.within = within.ok_or(format!("`{text}` is not a factor of 1 or more"))?;
            }
            "rounds" => self.rounds = args::count(parser, "rounds")?,
            "json" => self.json = Some(parser.value()?.into()),
            "fit" => self.fit = Some(parser.value()?.into()),
            _ => return Err(args::unknown(option)),
        }
        Ok(())
    }
}
