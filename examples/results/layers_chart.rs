//! A row for every layer, a panel for each direction, and a mark where each contender's time
//! over that of the frozen layer alone lies.

use crate::marks::{LETTER, Mark, WIDTH, head, ratio_range, ratio_ticks, tick_class};
use crate::overhead::{Layer, Overhead};
use crate::svg::Svg;

/// In the order of the legend, the first drawn last and so on top.
type Series = [(&'static str, Mark)];

const PANELS: [(&str, &Series); 2] = [
    (
        "forward: H",
        &[
            ("forward", Mark::Ours),
            ("frozen", Mark::Bare),
            ("forward_apart", Mark::Apart),
            ("addmm_forward", Mark::Addmm),
            ("augmented_forward", Mark::Augmented),
        ],
    ),
    ("backward: dX, dA and dB", &[("backward", Mark::Ours), ("addmm_backward", Mark::Addmm)]),
];

const GAP: f64 = 40.0;
const TOP: f64 = 118.0;
const ROW: f64 = 17.0;
/// Between groups of layers with the same number of tokens.
const GROUP_GAP: f64 = 9.0;

pub fn chart(results: &Overhead) -> String {
    let mut rows = Vec::new();
    let mut y = TOP;
    for (i, layer) in results.layers.iter().enumerate() {
        if i > 0 && results.layers[i - 1].key.t != layer.key.t {
            y += GROUP_GAP;
        }
        y += ROW;
        rows.push((y, layer));
    }
    let bottom = y + ROW;

    let title = "Time of a LoRA layer, relative to the frozen layer by cuBLASLt";
    let mut svg = head(bottom + 44.0, title, results);
    let mut x = 25.0;
    for (op, mark) in PANELS[0].1 {
        if rows.iter().any(|(_, layer)| layer.ratio(op).is_some()) {
            mark.draw(&mut svg, [x, 77.0]);
            svg.text([x + 10.0, 81.0], "", mark.name());
            x += 40.0 + LETTER * mark.name().chars().count() as f64;
        }
    }
    let label = |Layer { key, .. }: &Layer| format!("{}, {}, {}", key.t, key.weight(), key.r);
    let letters = rows.iter().map(|(_, layer)| label(layer).chars().count()).max().unwrap_or(0);
    let labels = (36.0 + LETTER * letters as f64).max(190.0);
    svg.text([labels - 12.0, TOP - 8.0], "end", "T, k → d, r");
    for (y, layer) in &rows {
        svg.text([labels - 12.0, y + 4.0], "end", &label(layer));
    }
    let width = (WIDTH - labels - 2.0 * GAP) / 2.0;
    for (i, (name, series)) in PANELS.iter().enumerate() {
        let left = labels + i as f64 * (width + GAP);
        panel(&mut svg, [left, width, bottom], name, series, &rows);
    }
    svg.finish()
}

fn panel(
    svg: &mut Svg,
    [left, width, bottom]: [f64; 3],
    name: &str,
    series: &Series,
    rows: &[(f64, &Layer)],
) {
    let ratios = |layer: &Layer| -> Vec<f64> {
        series.iter().filter_map(|(op, _)| layer.ratio(op)).collect()
    };
    let (low, high) = ratio_range(rows.iter().flat_map(|(_, layer)| ratios(layer)));
    let x = |ratio: f64| left + width * (ratio - low) / (high - low);

    svg.text([left, TOP - 8.0], "panel", name);
    for tick in ratio_ticks((low, high), 8.0) {
        svg.line([x(tick), TOP], [x(tick), bottom], tick_class(tick));
        svg.text([x(tick), bottom + 17.0], "tick middle", &format!("{tick:.2}"));
    }
    for &(y, layer) in rows {
        let ratios = ratios(layer);
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if low < high {
            svg.line([x(low), y], [x(high), y], "axis");
        }
        for (op, mark) in series.iter().rev() {
            if let Some(ratio) = layer.ratio(op) {
                mark.draw(svg, [x(ratio), y]);
            }
        }
    }
}
