//! What was measured, and the regret of a cost model on it.

use lora_kernels::calibration::{DeviceProfile, Pass};
use lora_kernels::{DType, Problem};
use serde_json::{Value, json};
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A result file.
pub struct Record {
    pub profile: DeviceProfile,
    pub rows: Vec<Row>,
}

/// A pass of a layer.
pub struct Row {
    pub problem: Problem,
    pub pass: Pass,
    pub timed: Vec<Timed>,
}

/// A schedule.
pub struct Timed {
    pub schedule: String,
    pub predicted_us: Option<f64>,
    pub us: f64,
}

/// The fields of a profile.
pub fn profile_json(profile: &DeviceProfile) -> String {
    let fields: Vec<_> = profile.figures().into_iter().collect();
    json!(fields).to_string()
}

impl Record {
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        Ok(Record::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let file: Value = serde_json::from_str(text)?;
        let figures: Vec<usize> = serde_json::from_value(file["profile"].clone())?;
        let figures = figures.try_into().map_err(|_| "`profile` has another length")?;
        let card = file["card"].as_str().ok_or("no `card`")?;
        let rows = file["rows"].as_array().ok_or("no `rows`")?;
        let rows = rows.iter().map(Row::parse).collect::<Result<_>>()?;
        Ok(Record { profile: DeviceProfile::of_figures(card, figures), rows })
    }
}

impl Row {
    fn parse(row: &Value) -> Result<Self> {
        let size = |name: &str| row[name].as_u64().ok_or(format!("no `{name}`"));
        let [t, k, d, r] = ["t", "k", "d", "r"].map(size);
        let [t, k, d, r] = [t? as usize, k? as usize, d? as usize, r? as usize];
        let pass = match row["pass"].as_str() {
            Some("forward") => Pass::Forward,
            Some("backward") => Pass::Backward,
            _ => return Err("no `pass`".into()),
        };
        let timed: Vec<(String, Option<f64>, f64)> =
            serde_json::from_value(row["schedules"].clone())?;
        let timed = timed.into_iter();
        let timed = timed.map(|(schedule, predicted_us, us)| Timed { schedule, predicted_us, us });
        let problem = Problem::single(t, k, d, r, DType::Bf16)?;
        Ok(Row { problem, pass, timed: timed.collect() })
    }

    pub fn json(&self) -> String {
        let (t, k, (d, r)) = (self.problem.t(), self.problem.k(), self.problem.projections()[0]);
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        };
        let round = |us: f64| (us * 100.0).round() / 100.0;
        let timed = |timed: &Timed| {
            json!([timed.schedule, timed.predicted_us.map(round), round(timed.us)]).to_string()
        };
        let timed: Vec<_> = self.timed.iter().map(timed).collect();
        format!(
            "{{\"pass\": \"{pass}\", \"t\": {t}, \"k\": {k}, \"d\": {d}, \"r\": {r}, \
             \"schedules\": [{}]}}",
            timed.join(", ")
        )
    }

    /// Its fastest schedule.
    pub fn fastest(&self) -> &Timed {
        let fastest = self.timed.iter().min_by(|a, b| a.us.total_cmp(&b.us));
        fastest.expect("a row has schedules")
    }

    /// The time of a schedule over that of the fastest; `None` if it was not timed.
    pub fn regret(&self, schedule: &str) -> Option<f64> {
        let of = self.timed.iter().find(|timed| timed.schedule == schedule)?;
        Some(of.us / self.fastest().us)
    }

    /// The schedule that was chosen beside the fastest.
    pub fn describe(&self, chosen: &str) -> String {
        let (problem, pass, fastest) = (&self.problem, self.pass, self.fastest());
        let regret = match self.regret(chosen) {
            Some(regret) => format!("{regret:.3}"),
            None => "not timed".to_string(),
        };
        format!(
            "{problem} {pass:?}: {} timed, chosen {chosen} {regret}, fastest {} {:.1} µs",
            self.timed.len(),
            fastest.schedule,
            fastest.us
        )
    }
}
