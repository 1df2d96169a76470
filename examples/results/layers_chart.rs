//! A row for every layer, a panel for each direction, and a mark where each contender's time
//! over that of the frozen layer alone lies.

use crate::results::{Layer, Results};
use crate::svg::{
    DARK_GRID, GREY, GRID, INK, Mark, PANEL_TITLE, WIDTH, head, is_frozen_layer, mark, ratio_range,
    ratio_ticks, text,
};
use std::fmt::Write;

const LEGEND: [Mark; 4] = [Mark::Ours, Mark::Bare, Mark::Addmm, Mark::Augmented];

/// The ops of a panel, those drawn last on top.
type Series = [(&'static str, Mark)];

const PANELS: [(&str, &Series); 2] = [
    (
        "forward: H",
        &[
            ("addmm_forward", Mark::Addmm),
            ("augmented_forward", Mark::Augmented),
            ("frozen", Mark::Bare),
            ("forward", Mark::Ours),
        ],
    ),
    ("backward: dX, dA and dB", &[("addmm_backward", Mark::Addmm), ("backward", Mark::Ours)]),
];

const LABELS: f64 = 190.0;
const GAP: f64 = 40.0;
const PANEL: f64 = (WIDTH - LABELS - 2.0 * GAP) / 2.0;
const TOP: f64 = 118.0;
const ROW: f64 = 17.0;
/// Between groups of layers with the same number of tokens.
const GROUP_GAP: f64 = 9.0;

pub fn chart(results: &Results) -> String {
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
    for shape in LEGEND {
        mark(&mut svg, [x, 77.0], shape);
        text(&mut svg, [x + 10.0, 81.0], "", shape.name());
        // About what the letters take.
        x += 40.0 + 6.6 * shape.name().chars().count() as f64;
    }
    let right = "text-anchor=\"end\"";
    text(&mut svg, [LABELS - 12.0, TOP - 8.0], right, "T, k → d, r");
    for (y, Layer { key, .. }) in &rows {
        let label = format!("{}, {} → {}, {}", key.t, key.k, key.outputs(), key.r);
        text(&mut svg, [LABELS - 12.0, y + 4.0], right, &label);
    }
    for (i, (name, series)) in PANELS.iter().enumerate() {
        let left = LABELS + i as f64 * (PANEL + GAP);
        panel(&mut svg, left, bottom, name, series, &rows);
    }
    svg + "</svg>\n"
}

fn panel(
    svg: &mut String,
    left: f64,
    bottom: f64,
    name: &str,
    series: &Series,
    rows: &[(f64, &Layer)],
) {
    let all =
        rows.iter().flat_map(|(_, layer)| series.iter().filter_map(|(op, _)| layer.ratio(op)));
    let (low, high) = ratio_range(all);
    let x = |ratio: f64| left + PANEL * (ratio - low) / (high - low);

    text(svg, [left, TOP - 8.0], PANEL_TITLE, name);
    for tick in ratio_ticks((low, high), 8.0) {
        let stroke = if is_frozen_layer(tick) { INK } else { GRID };
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"{stroke}\"/>",
            x(tick)
        );
        let style = format!("text-anchor=\"middle\" fill=\"{GREY}\" font-size=\"11\"");
        text(svg, [x(tick), bottom + 17.0], &style, &format!("{tick:.2}"));
    }

    for (y, layer) in rows {
        let ratios: Vec<f64> = series.iter().filter_map(|(op, _)| layer.ratio(op)).collect();
        let (low, high) =
            ratios.iter().fold((f64::MAX, f64::MIN), |(l, h), &r| (l.min(r), h.max(r)));
        if low < high {
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{DARK_GRID}\"/>",
                x(low),
                x(high)
            );
        }
        for (op, shape) in series {
            if let Some(ratio) = layer.ratio(op) {
                mark(svg, [x(ratio), *y], *shape);
            }
        }
    }
}
