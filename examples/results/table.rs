//! The results as a Markdown table, a row for every layer.

use crate::results::{Layer, Results};
use std::fmt::Write;

pub fn layers(results: &Results) -> String {
    let mut text = String::from(
        "| T | k → d | r | H, µs | forward | no adapter | addmm | augmented | dX, µs | \
         backward | addmm | dA dB, µs | of reading |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for layer in &results.layers {
        let base = |op: &str| us(layer.measured.get(op).map(|m| m.base_us));
        let ratio = |op: &str| ratio(layer, op);
        let _ = writeln!(
            text,
            "{} {} | **{}** | {} | {} | {} | {} | **{}** | {} | {} | {} |",
            name(layer),
            base("forward"),
            ratio("forward"),
            ratio("frozen"),
            ratio("addmm_forward"),
            ratio("augmented_forward"),
            base("backward"),
            ratio("backward"),
            ratio("addmm_backward"),
            us(layer.measured.get("backward_ab").map(|m| m.us)),
            ratio("backward_ab"),
        );
    }
    text
}

/// For few tokens, where a layer takes as long as its weight takes to be read.
pub fn tokens(results: &Results) -> String {
    let mut text = String::from(
        "| T | k → d | r | H, µs | forward | no adapter | addmm | augmented | weight read at | \
         path | backward | addmm |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|\n",
    );
    for layer in &results.layers {
        let forward = layer.measured.get("forward");
        let ratio = |op: &str| ratio(layer, op);
        let _ = writeln!(
            text,
            "{} {} | **{}** | {} | {} | {} | {} | {} | **{}** | {} |",
            name(layer),
            us(forward.map(|m| m.base_us)),
            ratio("forward"),
            ratio("frozen"),
            ratio("addmm_forward"),
            ratio("augmented_forward"),
            forward.map_or("–".into(), |m| weight_rate(layer, m.us, results.stream_tb_s)),
            forward.map_or("–", |m| &m.path),
            ratio("backward"),
            ratio("addmm_backward"),
        );
    }
    text
}

/// For projections that share their input.
pub fn shared(results: &Results) -> String {
    let mut text = String::from(
        "| T | k → d | r | H, µs | forward | one after another | addmm | dX, µs | backward | addmm |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for layer in &results.layers {
        let base = |op: &str| us(layer.measured.get(op).map(|m| m.base_us));
        let ratio = |op: &str| ratio(layer, op);
        let _ = writeln!(
            text,
            "{} {} | **{}** | {} | {} | {} | **{}** | {} |",
            name(layer),
            base("forward"),
            ratio("forward"),
            ratio("forward_apart"),
            ratio("addmm_forward"),
            base("backward"),
            ratio("backward"),
            ratio("addmm_backward"),
        );
    }
    text
}

fn name(Layer { key, .. }: &Layer) -> String {
    format!("| {} | {} → {} | {} |", key.t, key.k, key.outputs(), key.r)
}

fn us(us: Option<f64>) -> String {
    us.map_or("–".into(), |us| format!("{us:.1}"))
}

fn ratio(layer: &Layer, op: &str) -> String {
    layer.ratio(op).map_or("–".into(), |ratio| format!("{ratio:.2}"))
}

/// The bytes of the weight, two an element, over a time; and what share that is of `stream_tb_s`.
fn weight_rate(Layer { key, .. }: &Layer, us: f64, stream_tb_s: f64) -> String {
    let tb_s = (2 * key.k * key.d.iter().sum::<u64>()) as f64 / us / 1e6;
    format!("{tb_s:.2} TB/s, {:.0} %", 100.0 * tb_s / stream_tb_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{sample, sample_of};

    #[test]
    fn tokens_row() {
        let layer = [4, 4096, 14336, 16];
        let mut rows = vec![
            ("frozen", layer, [45.0, 50.0]),
            ("addmm_forward", layer, [65.0, 50.0]),
            ("augmented_forward", layer, [62.5, 50.0]),
            // 117440512 bytes: 2.447 TB/s of 3.2.
            ("forward", layer, [48.0, 50.0]),
            ("backward", layer, [66.0, 60.0]),
            ("addmm_backward", layer, [90.0, 60.0]),
        ];
        let last = |rows: &[_]| tokens(&sample(rows)).lines().last().unwrap().to_string();
        assert_eq!(
            last(&rows),
            "| 4 | 4096 → 14336 | 16 | 50.0 | **0.96** | 0.90 | 1.30 | 1.25 | 2.45 TB/s, 76 % | \
             mma | **1.10** | 1.50 |"
        );
        rows.remove(3);
        assert_eq!(
            last(&rows),
            "| 4 | 4096 → 14336 | 16 | – | **–** | 0.90 | 1.30 | 1.25 | – | – | **1.10** | 1.50 |"
        );
    }

    #[test]
    fn shared_row() {
        let ops = [
            ("forward", [104.0, 100.0]),
            ("forward_apart", [110.0, 100.0]),
            ("addmm_forward", [130.0, 100.0]),
            ("backward", [210.0, 200.0]),
        ];
        let rows = ops.map(|(op, us)| (op, [8, 64, 16], serde_json::json!([32, 8]), us));
        let results = sample_of(rows.into_iter());
        assert!(results.share_inputs());
        assert_eq!(
            shared(&results).lines().last().unwrap(),
            "| 8 | 64 → 32 + 8 | 16 | 100.0 | **1.04** | 1.10 | 1.30 | 200.0 | **1.05** | – |"
        );
    }

    #[test]
    fn rows_have_the_columns_of_their_header() {
        let results = sample(&[("forward", [4, 64, 64, 8], [1.0, 1.0])]);
        assert!(!results.share_inputs());
        for table in [layers(&results), tokens(&results), shared(&results)] {
            let columns: Vec<usize> = table.lines().map(|line| line.matches('|').count()).collect();
            assert_eq!(columns, [columns[0]; 3], "{table}");
        }
    }
}
