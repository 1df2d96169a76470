//! The loss curve as an SVG.

use std::fmt::Write;

const WIDTH: f32 = 760.0;
const HEIGHT: f32 = 440.0;
const LEFT: f32 = 64.0;
const RIGHT: f32 = WIDTH - 24.0;
const TOP: f32 = 84.0;
const BOTTOM: f32 = HEIGHT - 56.0;

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
        let epochs = self.losses.len() as f32 / self.steps_per_epoch as f32;
        let epoch_means = self.epoch_means();
        let steps = means(self.losses, self.losses.len().div_ceil(MAX_POINTS));
        let decades = decades(&steps);
        let x = |epoch: f32| LEFT + epoch / epochs * (RIGHT - LEFT);
        let y = |loss: f32| {
            let (low, high) = (decades[0] as f32, decades[decades.len() - 1] as f32);
            let share = (loss.max(f32::MIN_POSITIVE).log10() - low) / (high - low);
            BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
        };

        let mut svg = header(self.title, self.subtitle);
        for &decade in &decades {
            let at = y(10f32.powi(decade));
            line(&mut svg, [LEFT, at, RIGHT, at], "grid");
            text(&mut svg, LEFT - 8.0, at + 4.0, "end", "", &power_of_ten(decade));
        }
        line(&mut svg, [LEFT, BOTTOM, RIGHT, BOTTOM], "axis");
        let step = tick_step(epochs as usize);
        for tick in (0..=epochs as usize).step_by(step) {
            let at = x(tick as f32);
            line(&mut svg, [at, BOTTOM, at, BOTTOM + 5.0], "axis");
            text(&mut svg, at, BOTTOM + 20.0, "middle", "", &tick.to_string());
        }
        text(&mut svg, (LEFT + RIGHT) / 2.0, HEIGHT - 14.0, "middle", "", "epoch");
        let middle = (TOP + BOTTOM) / 2.0;
        let turn = format!("transform=\"rotate(-90 18 {middle})\"");
        text(&mut svg, 18.0, middle, "middle", &turn, "training loss (cross-entropy)");

        for (class, values) in [("steps", &steps), ("epochs", &epoch_means)] {
            // A mean over some time belongs to the middle of that time.
            let each = epochs / values.len() as f32;
            let point = |(i, &loss)| format!("{:.1},{:.1}", x((i as f32 + 0.5) * each), y(loss));
            let points: Vec<String> = values.iter().enumerate().map(point).collect();
            writeln!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")).unwrap();
        }
        for (at, class, label) in
            [(TOP + 16.0, "steps", "each step"), (TOP + 36.0, "epochs", "mean of an epoch")]
        {
            line(&mut svg, [RIGHT - 152.0, at, RIGHT - 128.0, at], class);
            text(&mut svg, RIGHT - 120.0, at + 4.0, "start", "", label);
        }
        svg.push_str("</svg>\n");
        svg
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

fn header(title: &str, subtitle: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
         <style>\n\
         text {{ font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #444 }}\n\
         .title {{ font-size: 18px; font-weight: 600; fill: #111 }}\n\
         line, polyline {{ fill: none; stroke-linejoin: round }}\n\
         .grid {{ stroke: #e4e4e4 }}\n\
         .axis {{ stroke: #888 }}\n\
         .steps {{ stroke: #9fc5e8; stroke-width: 1 }}\n\
         .epochs {{ stroke: #0b5394; stroke-width: 2.5 }}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, LEFT, 34.0, "start", "class=\"title\"", title);
    text(&mut svg, LEFT, 57.0, "start", "", subtitle);
    svg
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f32; 4], class: &str) {
    let ends = format!("x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"");
    writeln!(svg, "<line class=\"{class}\" {ends}/>").unwrap();
}

fn text(svg: &mut String, x: f32, y: f32, anchor: &str, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let start = format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {attributes}");
    writeln!(svg, "{}>{content}</text>", start.trim_end()).unwrap();
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
