//! Command lines.

use super::Result as Outcome;
use std::process::ExitCode;

/// What the command line of a benchmark sets.
pub trait Options: Sized {
    const BENCHMARK: &'static str;

    fn usage() -> String;

    /// Where no option is given.
    fn defaults() -> Self;

    /// One round of small layers, to see that the benchmark works.
    fn only_test() -> Self;

    /// Sets an option, or takes a word that is none. `value` is what follows the option.
    fn set(&mut self, option: &str, value: Value<'_>) -> Result<(), String>;
}

/// The value of an option, from `--option value` or `--option=value`.
pub struct Value<'a> {
    option: &'a str,
    attached: Option<String>,
    rest: &'a mut dyn Iterator<Item = String>,
}

impl Value<'_> {
    pub fn text(self) -> Result<String, String> {
        self.attached.or_else(|| self.rest.next()).ok_or(format!("{} needs a value", self.option))
    }

    /// A whole number from 1 up, which errors call `what`.
    pub fn count(self, what: &str) -> Result<usize, String> {
        let text = self.text()?;
        match text.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(format!("`{text}` is not a number of {what}")),
        }
    }
}

/// Runs a benchmark as its command line says.
pub fn main<O: Options>(run: impl FnOnce(&O) -> Outcome<()>) -> ExitCode {
    let name = O::BENCHMARK;
    let options = match parse::<O>(std::env::args().skip(1).collect()) {
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
fn parse<O: Options>(args: Vec<String>) -> Result<Option<O>, String> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Ok(None);
    }
    if !args.iter().any(|arg| arg == "--bench") {
        println!("{}: without --bench, small layers as a test", O::BENCHMARK);
        return Ok(Some(O::only_test()));
    }
    let mut options = O::defaults();
    let mut args = args.into_iter().filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let (option, attached) = match arg.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_string())),
            _ => (arg.as_str(), None),
        };
        options.set(option, Value { option, attached, rest: &mut args })?;
    }
    Ok(Some(options))
}
