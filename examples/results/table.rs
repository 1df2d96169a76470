//! The rows of an overhead file as a Markdown table.

use crate::overhead::{Layer, Overhead};
use std::fmt::Write;

/// A name, and what it says of a layer. A column that says nothing of any layer is left out.
type Column = (&'static str, fn(&Overhead, &Layer) -> Option<String>);

const COLUMNS: [Column; 15] = [
    ("H, µs", |_, layer| base_us(layer, "forward")),
    ("forward", |_, layer| ratio(layer, "forward").map(bold)),
    ("no adapter", |_, layer| ratio(layer, "frozen")),
    ("one by one", |_, layer| ratio(layer, "forward_apart")),
    ("addmm", |_, layer| ratio(layer, "addmm_forward")),
    ("augmented", |_, layer| ratio(layer, "augmented_forward")),
    ("dropout", |_, layer| ratio(layer, "forward_dropout")),
    ("dX, µs", |_, layer| base_us(layer, "backward")),
    ("backward", |_, layer| ratio(layer, "backward").map(bold)),
    ("addmm", |_, layer| ratio(layer, "addmm_backward")),
    ("dropout", |_, layer| ratio(layer, "backward_dropout")),
    ("dA dB, µs", |_, layer| layer.measured.get("backward_ab").map(|m| us(m.us))),
    ("of reading", |_, layer| ratio(layer, "backward_ab")),
    ("W0 read at", weight_rate),
    ("kernels", |_, layer| kernels(layer)),
];

/// What the columns are, for the page.
pub const EXPLANATION: &str = "\
Columns: *H* and *dX* are the frozen layer's times by the best cuBLASLt algorithm, and the columns \
after each are ratios to it, medians over the rounds of a run. *forward* and *backward* are this \
crate with the adapter, *no adapter* is its kernel for the frozen layer, *one by one* runs \
projections that share X one after the other, *addmm* adds the adapter in place by cuBLASLt calls \
with beta = 1, and *augmented* is [x | x Aᵀ][W0 | s·B]ᵀ by cuBLASLt. *dropout* is this crate with \
dropout over the same without. *dA dB* is the backward without dX, *of reading* its ratio to the \
time that reading X and dH once takes. *W0 read at* is the bytes of W0 over the forward's time, \
and their share of the rate at which the card reads.";

pub fn table(results: &Overhead) -> String {
    let says = |(_, value): &&Column| results.layers.iter().any(|l| value(results, l).is_some());
    let columns: Vec<&Column> = COLUMNS.iter().filter(says).collect();
    let mut text = String::from("| T | k → d | r |");
    columns.iter().for_each(|(name, _)| text += &format!(" {name} |"));
    text += "\n|---:|---:|---:|";
    columns.iter().for_each(|_| text += "---:|");
    for layer in &results.layers {
        let key = &layer.key;
        write!(text, "\n| {} | {} | {} |", key.t, key.weight(), key.r).expect("a string takes all");
        for (_, value) in &columns {
            text += &format!(" {} |", value(results, layer).unwrap_or("–".into()));
        }
    }
    text + "\n"
}

fn us(us: f64) -> String {
    format!("{us:.1}")
}

fn base_us(layer: &Layer, op: &str) -> Option<String> {
    layer.measured.get(op).map(|m| us(m.base_us))
}

fn ratio(layer: &Layer, op: &str) -> Option<String> {
    layer.ratio(op).map(|ratio| match ratio {
        // dA and dB of a few tokens, which read next to nothing.
        100.0.. => format!("{ratio:.0}"),
        _ => format!("{ratio:.2}"),
    })
}

fn bold(text: String) -> String {
    format!("**{text}**")
}

/// For few tokens, where a layer takes as long as its weight takes to be read.
fn weight_rate(results: &Overhead, layer: &Layer) -> Option<String> {
    let (key, forward) = (&layer.key, layer.measured.get("forward")?);
    // Two bytes an element.
    let tb_s = (2 * key.k * key.d.all().iter().sum::<u64>()) as f64 / forward.us / 1e6;
    let share = 100.0 * tb_s / results.stream_tb_s;
    (key.t <= 64).then(|| format!("{tb_s:.2} TB/s, {share:.0} %"))
}

/// The path of the forward, and that of the backward where it is another.
fn kernels(layer: &Layer) -> Option<String> {
    let (forward, backward) = (layer.path("forward"), layer.path("backward"));
    let paths: Vec<&str> =
        forward.into_iter().chain(backward.filter(|_| backward != forward)).collect();
    (!paths.is_empty()).then(|| paths.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overhead::{sample, sample_of};

    #[test]
    fn row_of_few_tokens() {
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
        let last = |rows: &[_]| table(&sample(rows)).lines().last().unwrap().to_string();
        assert_eq!(
            last(&rows),
            "| 4 | 4096 → 14336 | 16 | 50.0 | **0.96** | 0.90 | 1.30 | 1.25 | 60.0 | **1.10** | \
             1.50 | 2.45 TB/s, 76 % | mma |"
        );
        rows.remove(3);
        assert_eq!(
            last(&rows),
            "| 4 | 4096 → 14336 | 16 | 0.90 | 1.30 | 1.25 | 60.0 | **1.10** | 1.50 | mma |",
            "columns without values are left out"
        );
    }

    #[test]
    fn row_of_several_projections() {
        let ops = [
            ("forward", [104.0, 100.0]),
            ("forward_apart", [110.0, 100.0]),
            ("addmm_forward", [130.0, 100.0]),
            ("backward", [210.0, 200.0]),
        ];
        let rows = ops.map(|(op, us)| (op, [128, 64, 16], serde_json::json!([32, 8]), us));
        assert_eq!(
            table(&sample_of(rows.into_iter())).lines().last().unwrap(),
            "| 128 | 64 → 32 + 8 | 16 | 100.0 | **1.04** | 1.10 | 1.30 | 200.0 | **1.05** | mma |"
        );
    }

    #[test]
    fn rows_have_the_columns_of_their_header() {
        let row = |op, t| (op, [t, 64, 64, 8], [1.0, 1.0]);
        let table = table(&sample(&[row("forward", 4), row("frozen", 8), row("backward", 128)]));
        let columns: Vec<usize> = table.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(columns, [columns[0]; 5], "{table}");
        assert!(table.contains("| – |"));
    }
}
