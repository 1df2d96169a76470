//! What is printed and what is written to the result file.

use crate::common::Result;
use crate::common::environment::Environment;
use crate::common::results::{self, name};
use lora_kernels::Problem;
use lora_kernels::ops::Path;
use serde_json::json;
use std::fmt;
use std::path::PathBuf;

pub struct Row {
    pub problem: Option<Problem>,
    pub op: &'static str,
    pub us: f64,
    /// What `us` should not exceed.
    pub bar: Option<f64>,
    pub ratio: Option<f64>,
    /// What `ratio` should not exceed.
    pub ratio_bar: Option<f64>,
    pub path: Option<Path>,
    /// Other numbers, by their names in the file.
    pub more: Vec<(&'static str, String)>,
}

impl Row {
    pub fn new(problem: Option<Problem>, op: &'static str, us: f64) -> Self {
        let (bar, ratio, ratio_bar, path) = (None, None, None, None);
        Row { problem, op, us, bar, ratio, ratio_bar, path, more: Vec::new() }
    }

    pub fn with(mut self, field: &'static str, number: impl ToString) -> Self {
        self.more.push((field, number.to_string()));
        self
    }

    pub fn with_us(self, field: &'static str, us: f64) -> Self {
        self.with(field, format!("{us:.3}"))
    }

    fn json(&self) -> String {
        let mut fields = vec![format!("\"op\": \"{}\"", self.op)];
        fields.extend(self.problem.as_ref().map(results::sizes));
        fields.push(format!("\"us\": {:.3}", self.us));
        fields.extend(self.bar.map(|bar| format!("\"bar\": {bar}")));
        fields.extend(self.ratio.map(|ratio| format!("\"ratio\": {ratio:.4}")));
        fields.extend(self.ratio_bar.map(|bar| format!("\"ratio_bar\": {bar}")));
        fields.extend(self.more.iter().map(|(field, number)| format!("\"{field}\": {number}")));
        fields.extend(self.path.map(|path| format!("\"path\": \"{path}\"")));
        format!("{{{}}}", fields.join(", "))
    }
}

const COLUMNS: [&str; 6] = ["", "", "µs", "bar", "ratio", "bar"];

/// A line of the table.
fn line([problem, op, us, bar, ratio, ratio_bar]: [&str; 6], more: &str) -> String {
    format!("{problem:<44} {op:<13} {us:>9} {bar:>6} {ratio:>6} {ratio_bar:>6}  {more}")
        .trim_end()
        .to_string()
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, digits| {
            value.map_or(String::new(), |value| format!("{value:.digits$}"))
        };
        let over = |value: Option<f64>, bar: Option<f64>| {
            value.zip(bar).is_some_and(|(value, bar)| value > bar)
        };
        let over = over(Some(self.us), self.bar) || over(self.ratio, self.ratio_bar);
        let mut more = vec![];
        more.extend(over.then(|| "OVER".to_string()));
        let words = |field: &str| field.trim_end_matches("_us").replace('_', " ");
        more.extend(self.more.iter().map(|(field, number)| format!("{} {number}", words(field))));
        more.extend(self.path.map(|path| path.to_string()));
        let problem = self.problem.as_ref().map_or(String::new(), name);
        let (us, bar) = (number(Some(self.us), 2), number(self.bar, 1));
        let (ratio, ratio_bar) = (number(self.ratio, 3), number(self.ratio_bar, 3));
        let columns = [&*problem, self.op, &*us, &*bar, &*ratio, &*ratio_bar];
        f.write_str(&line(columns, &more.join(", ")))
    }
}

pub struct Report {
    file: Option<PathBuf>,
    pub environment: Environment,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(file: Option<PathBuf>, environment: Environment) -> Self {
        Report { file, environment, rows: Vec::new() }
    }

    /// The head of the table, and a file without rows, so that a path that cannot be written is
    /// noticed at once.
    pub fn begin(&self) -> Result<()> {
        println!("{}, {}\n{}", self.environment.describe(), cpu(), line(COLUMNS, ""));
        self.save()
    }

    /// Prints a row and writes all so far.
    pub fn add(&mut self, row: Row) -> Result<()> {
        println!("{row}");
        self.rows.push(row);
        self.save()
    }

    fn save(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let cpu = ("cpu", json!(cpu()).to_string());
        results::save(file, &self.environment, &[cpu], self.rows.iter().map(Row::json))
    }
}

/// The host's processor, as Linux names it.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(": "));
    name.map_or("an unknown processor", |(_, name)| name).to_string()
}
