//! The command line.

use crate::common::args;
use lexopt::{Error, Parser, ValueExt};
use std::ffi::OsString;
use std::path::PathBuf;

pub struct Options {
    pub rounds: usize,
    pub json: Option<PathBuf>,
    /// What the names of rows must contain.
    pub name: String,
    /// Small layers, to see that the benchmark works.
    pub only_test: bool,
}

impl Options {
    pub fn wants(&self, row: &str) -> bool {
        row.contains(&self.name)
    }

    /// Batches of a host time.
    pub fn batches(&self) -> usize {
        10 * self.rounds
    }

    /// Calls in a row of `whole`.
    pub fn calls(&self) -> usize {
        if self.only_test { 20 } else { 1000 }
    }
}

impl args::Options for Options {
    const BENCHMARK: &'static str = "host";

    fn usage() -> String {
        "usage: cargo bench --bench host -- [OPTION...] [NAME]\n  \
         NAME               only rows whose name contains this, like `k=4096 d=1024` or `whole`\n  \
         --rounds N         rounds of `whole`, and tens of batches of a host time (default: 5)\n  \
         --json FILE        also write the results there, after every row"
            .to_string()
    }

    fn defaults() -> Self {
        Options { rounds: 5, json: None, name: String::new(), only_test: false }
    }

    fn only_test() -> Self {
        Options { rounds: 1, only_test: true, ..Options::defaults() }
    }

    fn set(&mut self, option: &str, parser: &mut Parser) -> Result<(), Error> {
        match option {
            "rounds" => self.rounds = args::count(parser, "rounds")?,
            "json" => self.json = Some(parser.value()?.into()),
            _ => return Err(args::unknown(option)),
        }
        Ok(())
    }

    fn take(&mut self, word: OsString) -> Result<(), Error> {
        self.name = word.string()?;
        Ok(())
    }
}
