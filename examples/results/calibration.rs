//! Result files of the calibration: how much slower than the fastest the best prediction is.

use crate::costs::geometric_mean;
use crate::file::Header;
use serde::Deserialize;
use std::error::Error;

const EXPLANATION: &str = "\
Regret: the time of the schedule with the best prediction over that of the fastest, by the cost \
model of the commit. Layers where a rule chooses, for small batches, are left out.";

#[derive(Deserialize)]
struct File {
    #[serde(flatten)]
    header: Header,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    pass: String,
    /// Name, predicted and measured µs.
    schedules: Vec<(String, Option<f64>, f64)>,
}

impl Row {
    /// `None` where a rule decides, and not the cost model.
    fn regret(&self) -> Option<f64> {
        let timed = self.schedules.iter().map(|(_, predicted, us)| Some([(*predicted)?, *us]));
        let timed: Vec<[f64; 2]> = timed.collect::<Option<_>>()?;
        let [_, fastest] = timed.iter().min_by(|a, b| a[1].total_cmp(&b[1]))?;
        let [_, chosen] = timed.iter().min_by(|a, b| a[0].total_cmp(&b[0]))?;
        Some(chosen / fastest)
    }
}

/// Markdown.
pub fn section(json: &str) -> Result<String, Box<dyn Error>> {
    let File { header, rows } = serde_json::from_str(json)?;
    let mut text = format!("{}.\n\n{EXPLANATION}\n\n", header.conditions());
    text += "| pass | layers | schedules timed | regret, geometric mean | worst |\n";
    text += "|---|---:|---:|---:|---:|";
    for pass in ["forward", "backward"] {
        let of_pass = rows.iter().filter(|row| row.pass == pass && row.regret().is_some());
        let schedules: usize = of_pass.clone().map(|row| row.schedules.len()).sum();
        let regrets: Vec<f64> = of_pass.filter_map(Row::regret).collect();
        let worst = regrets.iter().copied().fold(1.0, f64::max);
        let (layers, mean) = (regrets.len(), geometric_mean(&regrets));
        text += &format!("\n| {pass} | {layers} | {schedules} | {mean:.4} | {worst:.3} |");
    }
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regret_is_of_the_best_prediction() {
        let schedule = |name: &str, predicted, us| (name.into(), predicted, us);
        let rule = schedule("rule", None, 1.0);
        let (chosen, fastest) = (schedule("a", Some(3.0), 4.5), schedule("b", Some(3.1), 3.0));
        let row = |schedules| Row { pass: String::new(), schedules };
        assert_eq!(row(vec![fastest.clone(), chosen.clone()]).regret(), Some(1.5));
        assert_eq!(row(vec![rule, fastest, chosen]).regret(), None);
    }
}
