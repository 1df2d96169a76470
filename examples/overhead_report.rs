//! Turns result files of the overhead benchmark into Markdown tables and SVG charts.
//!
//! ```text
//! cargo run --release --example overhead_report -- benches/results/FILE.json [MORE.json ...]
//! ```
//!
//! The tables go to standard output, the chart of FILE.json to FILE.svg beside it.

use serde_json::Value;
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write;
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
    println!("{}\n\n{}", results.conditions(), table(&results));
    let svg = file.with_extension("svg");
    std::fs::write(&svg, chart(&results))?;
    eprintln!("overhead_report: wrote {}", svg.display());
    Ok(())
}

/// A result file, its rows gathered by layer in the order of the file.
struct Results {
    header: HashMap<&'static str, String>,
    layers: Vec<Layer>,
}

struct Layer {
    key: Key,
    measured: HashMap<String, Measured>,
}

#[derive(Clone, PartialEq)]
struct Key {
    dtype: String,
    t: u64,
    k: u64,
    d: u64,
    r: u64,
}

#[derive(Clone, Copy)]
struct Measured {
    us: f64,
    base_us: f64,
    ratio: f64,
}

impl Results {
    fn read(json: &str) -> Result<Self, Box<dyn Error>> {
        let file: Value = serde_json::from_str(json)?;
        let mut header = HashMap::new();
        for field in ["card", "driver", "cublaslt", "clocks", "date", "commit", "stream_tb_s"] {
            let text = match file.get(field).ok_or(format!("there is no `{field}`"))? {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            header.insert(field, text);
        }
        let mut layers: Vec<Layer> = Vec::new();
        for row in file["rows"].as_array().ok_or("there are no `rows`")? {
            let text = |field| row[field].as_str().ok_or(format!("a row has no `{field}`"));
            let count = |field| row[field].as_u64().ok_or(format!("a row has no `{field}`"));
            let number = |field| row[field].as_f64().ok_or(format!("a row has no `{field}`"));
            let key = Key {
                dtype: text("dtype")?.to_string(),
                t: count("t")?,
                k: count("k")?,
                d: count("d")?,
                r: count("r")?,
            };
            let measured = Measured {
                us: number("us")?,
                base_us: number("base_us")?,
                ratio: number("ratio")?,
            };
            let at = layers.iter().position(|layer| layer.key == key).unwrap_or(layers.len());
            if at == layers.len() {
                layers.push(Layer { key, measured: HashMap::new() });
            }
            layers[at].measured.insert(text("op")?.to_string(), measured);
        }
        if layers.is_empty() {
            return Err("there are no rows in it".into());
        }
        Ok(Results { header, layers })
    }

    /// The element types in the file, which is one unless somebody joined files.
    fn dtypes(&self) -> String {
        let mut dtypes: Vec<&str> = self.layers.iter().map(|l| l.key.dtype.as_str()).collect();
        dtypes.dedup();
        dtypes.join(", ")
    }

    fn conditions(&self) -> String {
        let of = |field| &self.header[field];
        format!(
            "{}, {}, driver {}, cuBLASLt {}, {}, reads {} TB/s; {}, commit {}",
            of("card"),
            self.dtypes(),
            of("driver"),
            of("cublaslt"),
            of("clocks"),
            of("stream_tb_s"),
            of("date"),
            of("commit"),
        )
    }
}

fn table(results: &Results) -> String {
    let mut text = String::from(
        "| T | k → d | r | H, µs | forward | no adapter | addmm | augmented | dX, µs | \
         backward | addmm | dA dB, µs | of reading |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for Layer { key, measured } in &results.layers {
        let us = |us: Option<f64>| us.map_or("–".into(), |us| format!("{us:.1}"));
        let base = |op: &str| us(measured.get(op).map(|m| m.base_us));
        let ratio = |op: &str| measured.get(op).map_or("–".into(), |m| format!("{:.2}", m.ratio));
        let _ = writeln!(
            text,
            "| {} | {} → {} | {} | {} | **{}** | {} | {} | {} | {} | **{}** | {} | {} | {} |",
            key.t,
            key.k,
            key.d,
            key.r,
            base("forward"),
            ratio("forward"),
            ratio("frozen"),
            ratio("addmm_forward"),
            ratio("augmented_forward"),
            base("backward"),
            ratio("backward"),
            ratio("addmm_backward"),
            us(measured.get("backward_ab").map(|m| m.us)),
            ratio("backward_ab"),
        );
    }
    text
}

/// Marks differ in shape as well as in colour.
#[derive(Clone, Copy)]
enum Mark {
    Ours,
    /// Ours without the adapter.
    Bare,
    Addmm,
    Augmented,
}

const LEGEND: [(Mark, &str); 4] = [
    (Mark::Ours, "this crate"),
    (Mark::Bare, "its kernel with no adapter"),
    (Mark::Addmm, "cuBLASLt, adapter added in place"),
    (Mark::Augmented, "cuBLASLt, [x | xAᵀ][W | sB]ᵀ"),
];

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

const WIDTH: f64 = 960.0;
const LABELS: f64 = 190.0;
const GAP: f64 = 40.0;
const PANEL: f64 = (WIDTH - LABELS - 2.0 * GAP) / 2.0;
const TOP: f64 = 118.0;
const ROW: f64 = 17.0;
/// Between groups of layers with the same number of tokens.
const GROUP_GAP: f64 = 9.0;

/// A row for every layer, a panel for each direction, and a mark where each contender's time
/// over that of the frozen layer alone lies.
fn chart(results: &Results) -> String {
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
    let height = bottom + 44.0;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, 'Segoe UI', Roboto, \
         'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"#1f2328\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#ffffff\"/>\n"
    );
    let title = "Time of a LoRA layer, relative to the frozen layer by cuBLASLt";
    text(&mut svg, [20.0, 32.0], "font-size=\"17\" font-weight=\"600\"", title);
    let of = |field| &results.header[field];
    let subtitle = format!(
        "{}, {}, {}, commit {}. Medians of ratios within a round; 1.00 would be an adapter that \
         costs nothing.",
        of("card"),
        results.dtypes(),
        of("date"),
        of("commit")
    );
    text(&mut svg, [20.0, 53.0], "fill=\"#59636e\"", &subtitle);
    let mut x = 25.0;
    for (shape, name) in LEGEND {
        mark(&mut svg, [x, 77.0], shape);
        text(&mut svg, [x + 10.0, 81.0], "", name);
        // About what the letters take.
        x += 40.0 + 6.6 * name.chars().count() as f64;
    }
    let right = "text-anchor=\"end\"";
    text(&mut svg, [LABELS - 12.0, TOP - 8.0], right, "T, k → d, r");
    for (y, Layer { key, .. }) in &rows {
        let label = format!("{}, {} → {}, {}", key.t, key.k, key.d, key.r);
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
    let ratio = |layer: &Layer, op: &str| layer.measured.get(op).map(|m| m.ratio);
    let all: Vec<f64> = rows
        .iter()
        .flat_map(|(_, layer)| series.iter().filter_map(|(op, _)| ratio(layer, op)))
        .collect();
    let (low, high) = all.iter().fold((1.0f64, 1.0f64), |(l, h), &r| (l.min(r), h.max(r)));
    let margin = 0.05 * (high - low).max(0.02);
    let (low, high) = (low - margin, high + margin);
    // At most eight ticks, at round numbers.
    let steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
    let step = *steps.iter().find(|&&step| (high - low) / step < 8.0).unwrap_or(&10.0);
    let x = |ratio: f64| left + PANEL * (ratio - low) / (high - low);

    text(svg, [left, TOP - 8.0], "font-size=\"13\" font-weight=\"600\"", name);
    for tick in (low / step).ceil() as i64..=(high / step) as i64 {
        let value = tick as f64 * step;
        // The line at 1 is the frozen layer.
        let stroke = if (value - 1.0).abs() < 1e-9 { "#1f2328" } else { "#e3e6ea" };
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"{stroke}\"/>",
            x(value)
        );
        let label = format!("{value:.2}");
        let style = "text-anchor=\"middle\" fill=\"#59636e\" font-size=\"11\"";
        text(svg, [x(value), bottom + 17.0], style, &label);
    }

    for (y, layer) in rows {
        let ratios: Vec<f64> = series.iter().filter_map(|(op, _)| ratio(layer, op)).collect();
        let (low, high) =
            ratios.iter().fold((f64::MAX, f64::MIN), |(l, h), &r| (l.min(r), h.max(r)));
        if low < high {
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#c9d1d9\"/>",
                x(low),
                x(high)
            );
        }
        for (op, shape) in series {
            if let Some(ratio) = ratio(layer, op) {
                mark(svg, [x(ratio), *y], *shape);
            }
        }
    }
}

fn mark(svg: &mut String, [x, y]: [f64; 2], mark: Mark) {
    let _ = match mark {
        Mark::Ours => {
            writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"#0a7d33\"/>")
        }
        Mark::Bare => writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"#ffffff\" stroke=\"#0a7d33\" \
             stroke-width=\"1.5\"/>"
        ),
        Mark::Addmm => writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\" fill=\"#8a6d3b\"/>",
            x - 3.5,
            y - 3.5
        ),
        Mark::Augmented => writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}l4.5 4.5l-4.5 4.5l-4.5 -4.5z\" fill=\"#d98e04\"/>",
            y - 4.5
        ),
    };
}

fn text(svg: &mut String, [x, y]: [f64; 2], style: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>");
}
