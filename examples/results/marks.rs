//! What the charts share: the head of the page, the scale of ratios, marks and text.

use crate::results::Results;
use std::fmt::Write;

pub const WIDTH: f64 = 960.0;

pub const INK: &str = "#1f2328";
pub const GREY: &str = "#59636e";
pub const GRID: &str = "#e3e6ea";
pub const DARK_GRID: &str = "#c9d1d9";
const GREEN: &str = "#0a7d33";
const MID_GREEN: &str = "#45b068";
const PALE_GREEN: &str = "#93cfa4";
const BROWN: &str = "#8a6d3b";
const ORANGE: &str = "#d98e04";

/// Marks differ in shape as well as in colour.
#[derive(Clone, Copy, PartialEq)]
pub enum Mark {
    Ours,
    /// Ours at another rank, and at a third.
    OursSecond,
    OursThird,
    /// Ours without the adapter.
    Bare,
    Addmm,
    Augmented,
}

impl Mark {
    pub fn name(self) -> &'static str {
        match self {
            Mark::Ours | Mark::OursSecond | Mark::OursThird => "this crate",
            Mark::Bare => "its kernel with no adapter",
            Mark::Addmm => "cuBLASLt, adapter added in place",
            Mark::Augmented => "cuBLASLt, [x | xAᵀ][W | sB]ᵀ",
        }
    }

    /// How a line through such marks looks.
    fn stroke(self) -> String {
        let (colour, width, dash) = match self {
            Mark::Ours => (GREEN, 2.0, ""),
            Mark::OursSecond => (MID_GREEN, 2.0, "7 3"),
            Mark::OursThird => (PALE_GREEN, 2.0, "2 2"),
            Mark::Bare => (GREEN, 1.0, "1.5 2.5"),
            Mark::Addmm => (BROWN, 1.5, ""),
            Mark::Augmented => (ORANGE, 1.5, ""),
        };
        let dash =
            if dash.is_empty() { "".into() } else { format!(" stroke-dasharray=\"{dash}\"") };
        format!("stroke=\"{colour}\" stroke-width=\"{width}\"{dash}")
    }
}

/// The start of a chart: what it shows, and the conditions.
pub fn head(height: f64, title: &str, results: &Results) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, 'Segoe UI', Roboto, \
         'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#ffffff\"/>\n"
    );
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
    text(&mut svg, [20.0, 53.0], &format!("fill=\"{GREY}\""), &subtitle);
    svg
}

pub const PANEL_TITLE: &str = "font-size=\"13\" font-weight=\"600\"";

/// The least and the greatest ratio of an axis that holds 1 and all of `ratios`.
pub fn ratio_range(ratios: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = ratios.fold((1.0f64, 1.0f64), |(l, h), r| (l.min(r), h.max(r)));
    let margin = 0.05 * (high - low).max(0.02);
    (low - margin, high + margin)
}

/// At most `most` ticks, at round numbers.
pub fn ratio_ticks((low, high): (f64, f64), most: f64) -> Vec<f64> {
    let steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
    let step = *steps.iter().find(|&&step| (high - low) / step < most).unwrap_or(&10.0);
    let ticks = (low / step).ceil() as i64..=(high / step) as i64;
    ticks.map(|tick| tick as f64 * step).collect()
}

/// The line at 1 is the frozen layer.
pub fn is_frozen_layer(tick: f64) -> bool {
    (tick - 1.0).abs() < 1e-9
}

pub fn mark(svg: &mut String, [x, y]: [f64; 2], mark: Mark) {
    let _ = match mark {
        Mark::Ours => {
            writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{GREEN}\"/>")
        }
        Mark::OursSecond => {
            writeln!(svg, "<path d=\"M{x:.1} {:.1}l5 8.5h-10z\" fill=\"{MID_GREEN}\"/>", y - 5.5)
        }
        Mark::OursThird => {
            writeln!(svg, "<path d=\"M{x:.1} {:.1}l5 -8.5h-10z\" fill=\"{PALE_GREEN}\"/>", y + 5.5)
        }
        Mark::Bare => writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"#ffffff\" stroke=\"{GREEN}\" \
             stroke-width=\"1.5\"/>"
        ),
        Mark::Addmm => writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\" fill=\"{BROWN}\"/>",
            x - 3.5,
            y - 3.5
        ),
        Mark::Augmented => writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}l4.5 4.5l-4.5 4.5l-4.5 -4.5z\" fill=\"{ORANGE}\"/>",
            y - 4.5
        ),
    };
}

/// A line as it joins marks of this shape.
pub fn line(svg: &mut String, points: &[[f64; 2]], shape: Mark) {
    let joined: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" {}/>",
        joined.join(" "),
        shape.stroke()
    );
}

pub fn text(svg: &mut String, [x, y]: [f64; 2], style: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>");
}
