//! The regret of the cost models: the time of the schedule that a plan chooses over that of the
//! fastest that was timed, from `cargo bench --bench calibrate`.

#[allow(dead_code)] // What writes the file is the benchmark's.
#[path = "../../benches/calibrate/record.rs"]
mod record;

use lora_kernels::calibration::chosen;
use record::Record;
use std::path::Path;

/// In the mean over all rows, and at worst.
const MEAN: f64 = 1.03;
const WORST: f64 = 1.08;

#[test]
fn plans_choose_schedules_that_are_nearly_the_fastest() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let record = Record::read(&folder.join("h200-calibration.json")).unwrap();
    assert!(record.rows.len() > 200, "{} rows", record.rows.len());
    let mut regrets = Vec::new();
    for row in &record.rows {
        let chosen = chosen(&row.problem, row.pass, &record.profile);
        let regret = row.regret(&chosen);
        let regret = regret.unwrap_or_else(|| {
            panic!("{} {:?}: `{chosen}` was not timed; calibrate again", row.problem, row.pass)
        });
        assert!(regret <= WORST, "{}", row.describe(&chosen));
        regrets.push(regret);
    }
    let mean = regrets.iter().sum::<f64>() / regrets.len() as f64;
    assert!(mean <= MEAN, "{mean:.4}");
}
