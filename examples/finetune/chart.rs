//! The loss curve as an SVG.

use crate::svg::Svg;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = HEIGHT - 56.0;

const STYLE: &str = "\
polyline { fill: none; stroke-linejoin: round }
.steps { stroke: #9fc5e8; stroke-width: 1 }
.epochs { stroke: #0b5394; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
.steps { stroke: #1f4f7d }
.epochs { stroke: #6cb6ff }
}
";

/// More points than this are not to be told apart; each then stands for several steps.
const MAX_POINTS: usize = 1000;

/// The training loss over time: thin for the steps, bold for the mean of each epoch.
pub struct Chart<'a> {
    pub title: &'a str,
    pub subtitle: &'a str,
    /// The loss of each step.
    pub losses: &'a [f32],
    pub steps_per_epoch: usize,
}

impl Chart<'_> {
    pub fn epoch_means(&self) -> Vec<f32> {
        means(self.losses, self.steps_per_epoch)
    }

    pub fn svg(&self) -> String {
        let epochs = self.losses.len() as f64 / self.steps_per_epoch as f64;
        let epoch_means = self.epoch_means();
        let steps = means(self.losses, self.losses.len().div_ceil(MAX_POINTS));
        let decades = decades(&steps);
        let x = |epoch: f64| LEFT + epoch / epochs * (RIGHT - LEFT);
        let y = |loss: f32| {
            let (low, high) = (f64::from(decades[0]), f64::from(decades[decades.len() - 1]));
            let share = (f64::from(loss.max(f32::MIN_POSITIVE)).log10() - low) / (high - low);
            BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
        };

        let mut svg = Svg::new([WIDTH, HEIGHT], STYLE);
        svg.text([LEFT, 34.0], "title", self.title);
        svg.text([LEFT, 57.0], "grey", self.subtitle);
        for &decade in &decades {
            let at = y(10f32.powi(decade));
            svg.line([LEFT, at], [RIGHT, at], "grid");
            svg.text([LEFT - 8.0, at + 4.0], "end", &power_of_ten(decade));
        }
        svg.line([LEFT, BOTTOM], [RIGHT, BOTTOM], "axis");
        for tick in (0..=epochs as usize).step_by(tick_step(epochs as usize)) {
            let at = x(tick as f64);
            svg.line([at, BOTTOM], [at, BOTTOM + 5.0], "axis");
            svg.text([at, BOTTOM + 20.0], "middle", &tick.to_string());
        }
        svg.text([(LEFT + RIGHT) / 2.0, HEIGHT - 14.0], "middle", "epoch");
        let label = "training loss (cross-entropy)";
        svg.turned_text([18.0, (TOP + BOTTOM) / 2.0], -90, "middle", label);

        for (class, values) in [("steps", &steps), ("epochs", &epoch_means)] {
            // A mean over some time belongs to the middle of that time.
            let each = epochs / values.len() as f64;
            let values = values.iter().enumerate();
            svg.polyline(values.map(|(i, &loss)| [x((i as f64 + 0.5) * each), y(loss)]), class);
        }
        for (at, class, label) in
            [(TOP + 16.0, "steps", "each step"), (TOP + 36.0, "epochs", "mean of an epoch")]
        {
            svg.line([RIGHT - 152.0, at], [RIGHT - 128.0, at], class);
            svg.text([RIGHT - 120.0, at + 4.0], "", label);
        }
        svg.finish()
    }
}

/// The mean of every `size` values; the last mean may be of fewer.
fn means(values: &[f32], size: usize) -> Vec<f32> {
    values.chunks(size).map(|chunk| chunk.iter().sum::<f32>() / chunk.len() as f32).collect()
}

/// The exponents of the powers of ten from below the least loss to above the greatest, at least
/// one apart. More than six decades down there is nothing to see.
fn decades(losses: &[f32]) -> Vec<i32> {
    let least = losses.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = losses.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let top = greatest.log10().ceil() as i32;
    let bottom = least.max(f32::MIN_POSITIVE).log10().floor() as i32;
    (bottom.clamp(top - 6, top - 1)..=top).collect()
}

fn power_of_ten(exponent: i32) -> String {
    match exponent {
        0..=3 => 10i32.pow(exponent as u32).to_string(),
        -3..0 => format!("{:.1$}", 10f32.powi(exponent), exponent.unsigned_abs() as usize),
        _ => format!("1e{exponent}"),
    }
}

/// The smallest of 1, 2, 5, 10, 20, 50, .. that makes at most ten pieces of `0..=max`.
fn tick_step(max: usize) -> usize {
    let powers = std::iter::successors(Some(1), |power| Some(power * 10));
    let mut steps = powers.flat_map(|power| [power, 2 * power, 5 * power]);
    steps.find(|step| max / step <= 10).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        for (max, step) in [(1, 1), (10, 1), (11, 2), (40, 5), (70, 10), (10_000, 1000)] {
            assert_eq!(tick_step(max), step, "{max}");
        }
        assert_eq!(decades(&[4.0, 0.03, 0.5]), [-2, -1, 0, 1]);
        assert_eq!(decades(&[1.0]), [-1, 0]);
        let labels: Vec<String> = (-4..5).map(power_of_ten).collect();
        assert_eq!(labels, ["1e-4", "0.001", "0.01", "0.1", "1", "10", "100", "1000", "1e4"]);
    }

    #[test]
    fn any_losses_make_a_chart() {
        for losses in [vec![0.0], vec![0.0, 1.0], vec![1.0, 2.0, 0.5], vec![f32::MAX / 5.0; 5000]] {
            let chart = Chart { title: "a<b", subtitle: "", losses: &losses, steps_per_epoch: 1 };
            let svg = chart.svg();
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
