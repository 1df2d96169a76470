//! Fits the fields of a cost model to what was measured.

use crate::common::Result;
use crate::common::results::name;
use crate::record::{Record, Row};
use lora_kernels::calibration::{self, CostModel, DeviceProfile};

/// Sweeps over all fields, at most. Each halves the steps that no longer help.
const SWEEPS: usize = 60;

/// The first steps of a field, as a factor, and the last.
const FIRST_STEP: f64 = 1.3;
const LAST_STEP: f64 = 1.005;

/// A field stays within this factor of where it started: one that hardly matters would run away.
const MOST_CHANGE: f64 = 3.0;

/// What a row's mean error weighs beside the differences between its schedules, which alone decide.
const MEAN_WEIGHT: f64 = 0.05;

/// What the regret weighs beside them.
const REGRET_WEIGHT: f64 = 2.0;

/// A row, and where its schedules are in the list of candidates, which no field changes.
struct Place<'a> {
    row: &'a Row,
    of_timed: Vec<Option<usize>>,
}

impl<'a> Place<'a> {
    fn new(row: &'a Row, profile: &DeviceProfile, cost: &CostModel) -> Self {
        let all = calibration::candidates(&row.problem, row.pass, profile, cost);
        let names: Vec<_> = all.iter().map(|candidate| candidate.schedule()).collect();
        let place = |schedule: &String| names.iter().position(|name| name == schedule);
        Place { row, of_timed: row.timed.iter().map(|timed| place(&timed.schedule)).collect() }
    }

    /// The times of its schedules, predicted and measured, and where the best prediction is.
    fn times(&self, profile: &DeviceProfile, cost: &CostModel) -> Vec<[f64; 2]> {
        let all = calibration::candidates(&self.row.problem, self.row.pass, profile, cost);
        let timed = self.of_timed.iter().zip(&self.row.timed);
        let times =
            timed.filter_map(|(place, timed)| Some([all[(*place)?].predicted_us()?, timed.us]));
        times.collect()
    }

    fn loss(&self, profile: &DeviceProfile, cost: &CostModel) -> f64 {
        let times = self.times(profile, cost);
        let Some(&[_, chosen_us]) = times.iter().min_by(|a, b| a[0].total_cmp(&b[0])) else {
            return 0.0;
        };
        let fastest_us = times.iter().map(|[_, us]| *us).fold(f64::INFINITY, f64::min);
        // Whether a slow schedule is predicted well matters less.
        let weight = |us: f64| (fastest_us / us).powi(8);
        let total: f64 = times.iter().map(|[_, us]| weight(*us)).sum();
        let error = |[predicted, us]: &[f64; 2]| (predicted / us).ln();
        let mean = times.iter().map(|time| weight(time[1]) * error(time)).sum::<f64>() / total;
        let squares = times.iter().map(|time| weight(time[1]) * (error(time) - mean).powi(2));
        squares.sum::<f64>() / total
            + MEAN_WEIGHT * mean * mean
            + REGRET_WEIGHT * (chosen_us / fastest_us - 1.0).powi(2)
    }
}

pub fn run(record: &Record) -> Result<()> {
    let profile = &record.profile;
    let before = profile.cost();
    // Where a small batch is chosen, by rules, no prediction matters.
    let is_large = |row: &&Row| {
        let chosen = calibration::chosen(&row.problem, row.pass, profile);
        let chosen = row.timed.iter().find(|timed| timed.schedule == chosen);
        chosen.is_none_or(|timed| timed.predicted_us.is_some())
    };
    let large = record.rows.iter().filter(is_large);
    let places: Vec<_> = large.map(|row| Place::new(row, profile, &before)).collect();
    let loss = |cost: &CostModel| -> f64 {
        places.iter().map(|place| place.loss(profile, cost)).sum::<f64>() / places.len() as f64
    };
    let after = descend(before, loss);
    println!("loss {:.6} before, {:.6} after", loss(&before), loss(&after));
    println!("{after:#?}");
    for place in &places {
        let of = |cost: &CostModel| {
            let times = place.times(profile, cost);
            let best = times.iter().min_by(|a, b| a[0].total_cmp(&b[0])).copied();
            best.map(|[predicted, us]| (predicted / us, us / place.row.fastest().us))
        };
        if let (Some(before), Some(after)) = (of(&before), of(&after)) {
            println!(
                "{} {:?}: regret {:.3} before, {:.3} after; predicted over measured {:.2}, {:.2}",
                name(&place.row.problem),
                place.row.pass,
                before.1,
                after.1,
                before.0,
                after.0
            );
        }
    }
    Ok(())
}

/// Coordinate descent in the logarithms of the fields.
fn descend(start: CostModel, loss: impl Fn(&CostModel) -> f64) -> CostModel {
    let (mut best, mut best_loss) = (start, loss(&start));
    let mut steps = vec![FIRST_STEP; CostModel::FIELDS.len()];
    for _ in 0..SWEEPS {
        for (field, step) in CostModel::FIELDS.iter().zip(&mut steps) {
            let of = |mut cost: CostModel| *cost.field(field).expect("a field");
            let [least, most] = [of(start) / MOST_CHANGE, of(start) * MOST_CHANGE];
            let scaled = |factor: f64| {
                let mut cost = best;
                *cost.field(field).expect("a field") = (of(best) * factor).clamp(least, most);
                (loss(&cost), cost)
            };
            let [more, less] = [scaled(*step), scaled(1.0 / *step)];
            let (loss, cost) = if more.0 < less.0 { more } else { less };
            if loss < best_loss {
                (best_loss, best) = (loss, cost);
            } else {
                *step = step.sqrt();
            }
        }
        if steps.iter().all(|&step| step < LAST_STEP) {
            break;
        }
    }
    best
}
