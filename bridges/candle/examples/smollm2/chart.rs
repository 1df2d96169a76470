//! Loss curves as an SVG.

use crate::svg::Svg;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = HEIGHT - 56.0;

const STYLE: &str = "\
polyline { fill: none; stroke-linejoin: round }
.train { stroke: #9fc5e8; stroke-width: 1 }
.held-out { stroke: #0b5394; stroke-width: 2.5 }
.other-train { stroke: #f6c6a0; stroke-width: 1 }
.other-held-out { stroke: #bc4c00; stroke-width: 2.5; stroke-dasharray: 7 5 }
@media (prefers-color-scheme: dark) {
.train { stroke: #1f4f7d }
.held-out { stroke: #6cb6ff }
.other-train { stroke: #6b3a14 }
.other-held-out { stroke: #f0883e }
}
";

/// A line of the chart.
pub struct Curve {
    pub name: String,
    /// A class of [`STYLE`].
    pub class: &'static str,
    /// Losses after so many steps.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The loss of each step, which is taken before the step.
    pub fn steps(name: &str, class: &'static str, losses: &[f32]) -> Self {
        let points = losses.iter().enumerate().map(|(step, &loss)| (step as f64, loss.into()));
        Curve { name: name.into(), class, points: points.collect() }
    }

    /// Losses after so many steps.
    pub fn sparse(name: &str, class: &'static str, losses: &[(usize, f32)]) -> Self {
        let points = losses.iter().map(|&(step, loss)| (step as f64, loss.into()));
        Curve { name: name.into(), class, points: points.collect() }
    }
}

/// Losses over steps, the first curve at the back.
pub fn svg(title: &str, subtitle: &str, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let losses = || points().map(|point| point.1);
    let steps = points().map(|point| point.0).fold(1.0, f64::max);
    let greatest = losses().fold(0.0, f64::max);
    let least = losses().fold(greatest, f64::min);
    let (x_tick, y_tick) = (tick(steps).max(1.0), tick((greatest - least).max(0.1)));
    let low = (least / y_tick).floor();
    let pieces = ((greatest / y_tick).ceil() - low).max(1.0);
    let x = |step: f64| LEFT + step / steps * (RIGHT - LEFT);
    let y = |loss: f64| BOTTOM - (loss / y_tick - low) / pieces * (BOTTOM - TOP);

    let mut svg = Svg::new([WIDTH, HEIGHT], STYLE);
    svg.text([LEFT, 34.0], "title", title);
    svg.text([LEFT, 57.0], "grey", subtitle);
    for i in 0..=pieces as usize {
        let loss = (low + i as f64) * y_tick;
        svg.line([LEFT, y(loss)], [RIGHT, y(loss)], if i == 0 { "axis" } else { "grid" });
        svg.text([LEFT - 8.0, y(loss) + 4.0], "end", &round(loss));
    }
    for i in 0..=(steps / x_tick) as usize {
        let step = i as f64 * x_tick;
        svg.line([x(step), BOTTOM], [x(step), BOTTOM + 5.0], "axis");
        svg.text([x(step), BOTTOM + 20.0], "middle", &round(step));
    }
    svg.text([(LEFT + RIGHT) / 2.0, HEIGHT - 14.0], "middle", "step");
    svg.turned_text([18.0, (TOP + BOTTOM) / 2.0], -90, "middle", "loss (cross-entropy)");
    for curve in curves {
        svg.polyline(curve.points.iter().map(|&(step, loss)| [x(step), y(loss)]), curve.class);
    }
    // Losses fall, so that there is room at the end of the top.
    for (i, curve) in curves.iter().rev().enumerate() {
        let at = TOP + 16.0 + 20.0 * i as f64;
        svg.line([RIGHT - 208.0, at], [RIGHT - 180.0, at], curve.class);
        svg.text([RIGHT - 172.0, at + 4.0], "", &curve.name);
    }
    svg.finish()
}

/// The smallest of 1, 2, 5, 10, .. times a power of ten that makes at most eight pieces of a range.
fn tick(range: f64) -> f64 {
    let power = 10f64.powf((range / 8.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| range / step <= 8.0).unwrap_or(10.0 * power)
}

/// Without the digits that f64 adds to a decimal number.
fn round(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        for (range, expected) in [(3.4, 0.5), (96.0, 20.0), (8.0, 1.0), (0.031, 0.005)] {
            assert!((tick(range) - expected).abs() < 1e-12, "{range}: {}", tick(range));
        }
        assert_eq!([0.0, 0.5, 20.0, 0.1 + 0.2].map(round), ["0", "0.5", "20", "0.3"]);
    }

    #[test]
    fn any_losses_make_a_chart() {
        for losses in [vec![], vec![0.0], vec![3.0, 1.0, 2.0], vec![11.0; 5000]] {
            let curves = [Curve::steps("a<b", "train", &losses)];
            let svg = svg("title", "", &curves);
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
