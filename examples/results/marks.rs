//! What the charts of ratios share: the head of the page, the scale, and the marks.

use crate::overhead::Overhead;
use crate::svg::Svg;
use std::fmt::Write;

pub const WIDTH: f64 = 960.0;

/// What letters take, about.
pub const LETTER: f64 = 6.6;

/// Marks differ in shape as well as in colour.
#[derive(Clone, Copy, PartialEq)]
pub enum Mark {
    Ours,
    /// Ours at another rank, and at a third.
    OursSecond,
    OursThird,
    /// Ours without the adapter.
    Bare,
    /// Ours, one projection after the other.
    Apart,
    Addmm,
    Augmented,
}

/// Class, colour on a light and on a dark page, and how a line is stroked.
const LOOKS: [(Mark, &str, [&str; 2], &str); 7] = [
    (Mark::Ours, "ours", ["#0a7d33", "#3fb950"], "stroke-width: 2"),
    (Mark::OursSecond, "second", ["#45b068", "#2f9e52"], "stroke-width: 2; stroke-dasharray: 7 3"),
    (Mark::OursThird, "third", ["#93cfa4", "#7ad194"], "stroke-width: 2; stroke-dasharray: 2 2"),
    (Mark::Bare, "bare", ["#0a7d33", "#3fb950"], "stroke-dasharray: 1.5 2.5"),
    (Mark::Apart, "apart", ["#45b068", "#2f9e52"], ""),
    (Mark::Addmm, "addmm", ["#8a6d3b", "#c69c5d"], "stroke-width: 1.5"),
    (Mark::Augmented, "augmented", ["#d98e04", "#e3b341"], "stroke-width: 1.5"),
];

impl Mark {
    pub fn name(self) -> &'static str {
        match self {
            Mark::Ours | Mark::OursSecond | Mark::OursThird => "this crate",
            Mark::Bare => "its kernel with no adapter",
            Mark::Apart => "one projection after the other",
            Mark::Addmm => "cuBLASLt, adapter added in place",
            Mark::Augmented => "cuBLASLt, [x | xAᵀ][W | sB]ᵀ",
        }
    }

    fn class(self) -> &'static str {
        let look = LOOKS.iter().find(|look| look.0 == self);
        look.expect("every mark has a look").1
    }

    pub fn draw(self, svg: &mut Svg, [x, y]: [f64; 2]) {
        let class = self.class();
        let mut circle = |class: &str, r: f64| {
            svg.element("circle", class, &format!("cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\""))
        };
        let (above, path) = match self {
            Mark::Ours => return circle(class, 4.5),
            Mark::Bare => return circle("back bare-ring", 3.5),
            Mark::OursSecond | Mark::Apart => (5.5, "l5 8.5h-10z"),
            Mark::OursThird => (-5.5, "l5 -8.5h-10z"),
            Mark::Addmm => (3.5, "h3.5v7h-7v-7z"),
            Mark::Augmented => (4.5, "l4.5 4.5l-4.5 4.5l-4.5 -4.5z"),
        };
        svg.element("path", class, &format!("d=\"M{x:.1} {:.1}{path}\"", y - above));
    }

    /// A line that joins such marks.
    pub fn line(self, svg: &mut Svg, points: impl IntoIterator<Item = [f64; 2]>) {
        svg.polyline(points, &format!("{}-line", self.class()));
    }
}

fn style() -> String {
    let colours = |page: usize| -> String {
        let rules = LOOKS.iter().map(|(_, class, colours, _)| {
            let colour = colours[page];
            format!(".{class} {{ fill: {colour} }}\n.{class}-line {{ stroke: {colour} }}\n")
        });
        let ring = LOOKS[3].2[page];
        rules.chain([format!(".bare-ring {{ stroke: {ring}; stroke-width: 1.5 }}\n")]).collect()
    };
    let mut style = String::from("polyline { fill: none }\n");
    for (_, class, _, stroke) in LOOKS.iter().filter(|look| !look.3.is_empty()) {
        writeln!(style, ".{class}-line {{ {stroke} }}").expect("a string takes all");
    }
    style + &colours(0) + "@media (prefers-color-scheme: dark) {\n" + &colours(1) + "}\n"
}

/// The start of a chart: what it shows, and the conditions.
pub fn head(height: f64, title: &str, results: &Overhead) -> Svg {
    let mut svg = Svg::new([WIDTH, height], &style());
    svg.text([20.0, 32.0], "title", title);
    let header = &results.header;
    let subtitle = format!(
        "{}, {}, {}, commit {}. Medians of ratios within a round; 1.00 would be an adapter that \
         costs nothing.",
        header.card,
        results.dtypes(),
        header.date,
        header.commit
    );
    svg.text([20.0, 53.0], "grey", &subtitle);
    svg
}

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

/// The line of a tick; that at 1 is the frozen layer.
pub fn tick_class(tick: f64) -> &'static str {
    if approx::abs_diff_eq!(tick, 1.0, epsilon = 1e-9) { "one" } else { "grid" }
}
