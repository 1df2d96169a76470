//! Turns result files of the overhead benchmark into Markdown tables and SVG charts.
//!
//! ```text
//! cargo run --release --example overhead_report -- benches/results/FILE.json [MORE.json ...]
//! ```
//!
//! The tables go to standard output, the chart of FILE.json to FILE.svg beside it. Where a file
//! follows its layers over many numbers of tokens T, as the set `decode` does, the chart has T as
//! an axis; otherwise it has a row for every layer. Projections that share their input have a table
//! and no chart.

mod layers_chart;
mod results;
mod svg;
mod table;
mod tokens_chart;

use crate::results::Results;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() || files.iter().any(|file| file.starts_with('-')) {
        eprintln!("usage: overhead_report FILE.json [MORE.json ...]");
        return ExitCode::from(2);
    }
    for file in &files {
        if let Err(error) = report(Path::new(file)) {
            eprintln!("overhead_report: {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn report(file: &Path) -> Result<(), Box<dyn Error>> {
    let results = Results::read(&std::fs::read_to_string(file)?)?;
    if results.share_inputs() {
        println!("{}\n\n{}", results.conditions(), table::shared(&results));
        return Ok(());
    }
    let follow_tokens = results.follow_tokens();
    let table = if follow_tokens { table::tokens(&results) } else { table::layers(&results) };
    println!("{}\n\n{table}", results.conditions());
    let chart =
        if follow_tokens { tokens_chart::chart(&results)? } else { layers_chart::chart(&results) };
    let svg = file.with_extension("svg");
    std::fs::write(&svg, chart)?;
    eprintln!("overhead_report: wrote {}", svg.display());
    Ok(())
}
