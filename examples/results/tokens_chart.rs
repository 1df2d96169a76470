//! A panel for every weight, and in it lines over the number of tokens: each contender's forward
//! over that of the frozen layer alone.

use crate::marks::{Mark, WIDTH, head, ratio_range, ratio_ticks, tick_class};
use crate::overhead::{Layer, Overhead, sorted};
use crate::svg::Svg;

/// Marks for this crate, from the lowest rank up.
const RANK_MARKS: [Mark; 3] = [Mark::Ours, Mark::OursSecond, Mark::OursThird];

const COLUMNS: usize = 2;
const LEFT: f64 = 62.0;
const GAP: f64 = 58.0;
const PANEL: f64 = (WIDTH - LEFT - GAP - 22.0) / 2.0;
/// Between the edge of a panel and the first or the last T.
const INSET: f64 = 14.0;
const TOP: f64 = 148.0;
const HEIGHT: f64 = 250.0;
/// From the top of a panel to that of the one below it.
const PITCH: f64 = HEIGHT + 72.0;
const LEGEND_COLUMN: f64 = (WIDTH - 40.0) / 3.0;

/// What one line follows.
struct Series {
    op: &'static str,
    r: u64,
    mark: Mark,
}

pub fn chart(results: &Overhead) -> Result<String, String> {
    let keys = || results.layers.iter().map(|layer| &layer.key);
    let ranks = sorted(keys().map(|key| key.r));
    if ranks.len() > RANK_MARKS.len() {
        return Err(format!("a chart against T has no marks for {} ranks", ranks.len()));
    }
    let series = series(&ranks);
    let drawn = |layer: &Layer| {
        let of = |s: &Series| layer.ratio(s.op).filter(|_| layer.key.r == s.r);
        series.iter().filter_map(of).collect::<Vec<f64>>()
    };
    let range = ratio_range(results.layers.iter().flat_map(drawn));
    let tokens = sorted(keys().map(|key| key.t));
    let mut weights = Vec::new();
    for key in keys() {
        let weight = (&key.dtype, key.weight());
        if !weights.contains(&weight) {
            weights.push(weight);
        }
    }

    let title = "Forward of a LoRA layer against T, relative to the frozen layer by cuBLASLt";
    let rows = weights.len().div_ceil(COLUMNS);
    let mut svg = head(TOP + rows as f64 * PITCH - 18.0, title, results);
    legend(&mut svg, &series);
    for (i, (dtype, weight)) in weights.iter().enumerate() {
        let left = LEFT + (i % COLUMNS) as f64 * (PANEL + GAP);
        let top = TOP + (i / COLUMNS) as f64 * PITCH;
        let panel = Panel { left, top, tokens: &tokens, range };
        let several = weights.iter().any(|(other, _)| other != dtype);
        let suffix = if several { format!(", {dtype}") } else { String::new() };
        panel.axes(&mut svg, &format!("k → d: {weight}{suffix}"));
        for s in series.iter().rev() {
            let of_panel = |layer: &&Layer| {
                let key = &layer.key;
                (&key.dtype, &key.weight(), key.r) == (dtype, weight, s.r)
            };
            let layers = results.layers.iter().filter(of_panel);
            let mut points: Vec<(u64, f64)> =
                layers.filter_map(|layer| Some((layer.key.t, layer.ratio(s.op)?))).collect();
            points.sort_unstable_by_key(|&(t, _)| t);
            panel.line(&mut svg, &points, s.mark);
        }
    }
    Ok(svg.finish())
}

/// In the order of the legend, the first drawn last and so on top. All but this crate only at
/// the lowest rank.
fn series(ranks: &[u64]) -> Vec<Series> {
    let ours = ranks.iter().zip(RANK_MARKS).map(|(&r, mark)| Series { op: "forward", r, mark });
    let others = [
        ("frozen", Mark::Bare),
        ("addmm_forward", Mark::Addmm),
        ("augmented_forward", Mark::Augmented),
    ];
    ours.chain(others.map(|(op, mark)| Series { op, r: ranks[0], mark })).collect()
}

fn legend(svg: &mut Svg, series: &[Series]) {
    for (i, Series { r, mark, .. }) in series.iter().enumerate() {
        let (x, y) = (20.0 + (i % 3) as f64 * LEGEND_COLUMN, 77.0 + (i / 3) as f64 * 20.0);
        mark.line(svg, [[x, y], [x + 27.0, y]]);
        mark.draw(svg, [x + 13.5, y]);
        let rank = if *mark == Mark::Bare { String::new() } else { format!(", r = {r}") };
        svg.text([x + 34.0, y + 4.0], "", &format!("{}{rank}", mark.name()));
    }
}

struct Panel<'a> {
    left: f64,
    top: f64,
    /// The ticks, from the least to the greatest.
    tokens: &'a [u64],
    /// Of the ratios.
    range: (f64, f64),
}

impl Panel<'_> {
    /// Each doubling of T is as wide as any other.
    fn x(&self, t: u64) -> f64 {
        let log = |t: u64| (t as f64).log2();
        let (first, last) = (log(self.tokens[0]), log(self.tokens[self.tokens.len() - 1]));
        self.left + INSET + (PANEL - 2.0 * INSET) * (log(t) - first) / (last - first)
    }

    fn y(&self, ratio: f64) -> f64 {
        let (low, high) = self.range;
        self.top + HEIGHT * (high - ratio) / (high - low)
    }

    fn axes(&self, svg: &mut Svg, name: &str) {
        let (left, right, bottom) = (self.left, self.left + PANEL, self.top + HEIGHT);
        svg.text([left, self.top - 10.0], "panel", name);
        for tick in ratio_ticks(self.range, 10.0) {
            let y = self.y(tick);
            svg.line([left, y], [right, y], tick_class(tick));
            svg.text([left - 8.0, y + 4.0], "tick end", &format!("{tick:.2}"));
        }
        svg.line([left, bottom], [right, bottom], "axis");
        let mut free = left;
        for &t in self.tokens {
            let x = self.x(t);
            svg.line([x, bottom], [x, bottom + 5.0], "axis");
            // A label that would touch the one before it is left out.
            let half = 3.5 * t.to_string().len() as f64 + 2.0;
            if x - half >= free {
                svg.text([x, bottom + 19.0], "tick middle", &t.to_string());
                free = x + half;
            }
        }
        svg.text([(left + right) / 2.0, bottom + 37.0], "tick middle", "T, tokens");
    }

    fn line(&self, svg: &mut Svg, points: &[(u64, f64)], mark: Mark) {
        let points = points.iter().map(|&(t, ratio)| [self.x(t), self.y(ratio)]);
        mark.line(svg, points.clone());
        for point in points {
            mark.draw(svg, point);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overhead::sample;
    use approx::assert_abs_diff_eq;

    const TOKENS: [u64; 6] = [1, 2, 4, 100, 128, 1024];

    fn first_panel(range: (f64, f64)) -> Panel<'static> {
        Panel { left: LEFT, top: TOP, tokens: &TOKENS, range }
    }

    #[test]
    fn doublings_are_equally_wide() {
        let panel = first_panel((0.5, 1.5));
        let doubling = (PANEL - 2.0 * INSET) / 10.0;
        for (t, doublings) in [(1, 0), (2, 1), (4, 2), (128, 7), (1024, 10)] {
            let x = LEFT + INSET + f64::from(doublings) * doubling;
            assert_abs_diff_eq!(panel.x(t), x, epsilon = 1e-9);
        }
        assert!(panel.x(4) < panel.x(100) && panel.x(100) < panel.x(128));
    }

    #[test]
    fn lines_are_drawn_through_what_was_measured() {
        let mut rows = Vec::new();
        for r in [64, 16] {
            // From the last T to the first: the order of the file is not that of the line.
            for &t in TOKENS.iter().rev() {
                for (op, us) in [("forward", 1.0), ("frozen", 0.8), ("addmm_forward", 2.0)] {
                    let us = us + if r == 64 { 0.25 } else { 0.0 };
                    rows.push((op, [t, 64, 64, r], [us, 1.0]));
                }
            }
        }
        let svg = chart(&sample(&rows)).unwrap();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));

        // From the frozen layer's 0.8 to addmm's 2.0 at the lowest rank, not 2.25, and a margin.
        let panel = first_panel((0.74, 2.06));
        let drawn = |ratio: f64| {
            let point = |&t: &u64| format!("{:.1},{:.1}", panel.x(t), panel.y(ratio));
            let points: Vec<String> = TOKENS.iter().map(point).collect();
            svg.contains(&format!("points=\"{}\"", points.join(" ")))
        };
        assert!(drawn(1.0) && drawn(1.25), "forward at both ranks");
        assert!(drawn(0.8) && drawn(2.0), "the others at the lowest");
        assert!(!drawn(1.05) && !drawn(2.25), "and at no other");
        assert!(svg.contains(">this crate, r = 64<") && !svg.contains("place, r = 64"));
    }

    #[test]
    fn labels_do_not_touch() {
        let mut svg = Svg::new([WIDTH, HEIGHT], "");
        first_panel((0.5, 1.5)).axes(&mut svg, "");
        let svg = svg.finish();
        // 128 is a third of a doubling from 100.
        let labelled: Vec<u64> =
            TOKENS.into_iter().filter(|t| svg.contains(&format!(">{t}<"))).collect();
        assert_eq!(labelled, [1, 2, 4, 100, 1024]);
    }

    #[test]
    fn more_ranks_than_marks_are_refused() {
        let row = |r| ("forward", [1, 64, 64, r], [1.0, 1.0]);
        let error = chart(&sample(&[row(8), row(16), row(32), row(64)])).unwrap_err();
        assert!(error.contains("4 ranks"), "{error}");
    }
}
