//! Command lines.

use super::Result as Outcome;
use lexopt::prelude::*;
use lexopt::{Error, Parser};
use std::ffi::OsString;
use std::process::ExitCode;

/// What the command line of a benchmark sets.
pub trait Options: Sized {
    const BENCHMARK: &'static str;

    fn usage() -> String;

    /// Where no option is given.
    fn defaults() -> Self;

    /// One round of small layers, to see that the benchmark works.
    fn only_test() -> Self;

    /// Sets the option `--option`, whose value the parser has.
    fn set(&mut self, option: &str, parser: &mut Parser) -> Result<(), Error>;

    /// Takes a word that is no option.
    fn take(&mut self, word: OsString) -> Result<(), Error> {
        Err(Error::UnexpectedArgument(word))
    }
}

/// The value of an option: a whole number from 1 up, which errors call `what`.
pub fn count(parser: &mut Parser, what: &str) -> Result<usize, Error> {
    let text = parser.value()?.string()?;
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("`{text}` is not a number of {what}").into()),
    }
}

/// Runs a benchmark as its command line says.
pub fn main<O: Options>(run: impl FnOnce(&O) -> Outcome<()>) -> ExitCode {
    let name = O::BENCHMARK;
    let options = match parse::<O>(std::env::args_os().skip(1).collect()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", O::usage());
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("{name}: {message}\n{}", O::usage());
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `None` if help is asked for.
///
/// `cargo bench` adds `--bench`. Without it this is `cargo test`, whose arguments are for test
/// harnesses: they are ignored, and the benchmark only tests itself.
fn parse<O: Options>(args: Vec<OsString>) -> Result<Option<O>, Error> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Ok(None);
    }
    if !args.iter().any(|arg| arg == "--bench") {
        println!("{}: without --bench, small layers as a test", O::BENCHMARK);
        return Ok(Some(O::only_test()));
    }
    let mut options = O::defaults();
    let mut parser = Parser::from_args(args.into_iter().filter(|arg| arg != "--bench"));
    while let Some(arg) = parser.next()? {
        match arg {
            Long(name) => {
                let name = name.to_string();
                options.set(&name, &mut parser)?;
            }
            Value(word) => options.take(word)?,
            Short(_) => return Err(arg.unexpected()),
        }
    }
    Ok(Some(options))
}

/// What a benchmark says of an option that it has not.
pub fn unknown(option: &str) -> Error {
    Error::UnexpectedOption(format!("--{option}"))
}
