//! SVG charts, light or dark as the reader's page is.

use std::fmt::Write;

/// What all charts look like. A viewer without `prefers-color-scheme` takes the light one.
const STYLE: &str = "\
text { font: 12px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.panel { font-size: 13px; font-weight: 600 }
.grey, .tick { fill: #59636e }
.tick { font-size: 11px }
.middle { text-anchor: middle }
.end { text-anchor: end }
.back { fill: #ffffff }
.grid { stroke: #e3e6ea }
.axis { stroke: #c9d1d9 }
.one { stroke: #1f2328 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.grey, .tick { fill: #9198a1 }
.back { fill: #0d1117 }
.grid { stroke: #262c36 }
.axis { stroke: #3d444d }
.one { stroke: #f0f6fc }
}
";

/// A chart as it grows. A class names what the style says of an element.
pub struct Svg(String);

impl Svg {
    /// An empty page with more classes: CSS, which may have a media query of its own.
    pub fn new([width, height]: [f64; 2], style: &str) -> Self {
        Svg(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <style>\n{STYLE}{style}</style>\n\
             <rect width=\"100%\" height=\"100%\" rx=\"6\" class=\"back\"/>\n"
        ))
    }

    pub fn finish(self) -> String {
        self.0 + "</svg>\n"
    }

    /// An element without content, by its attributes but the class.
    pub fn element(&mut self, name: &str, class: &str, attributes: &str) {
        writeln!(self.0, "<{name} class=\"{class}\" {attributes}/>").expect("a string takes all");
    }

    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], class: &str) {
        let ends = format!("x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"");
        self.element("line", class, &ends);
    }

    pub fn polyline(&mut self, points: impl IntoIterator<Item = [f64; 2]>, class: &str) {
        let points: Vec<_> = points.into_iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        self.element("polyline", class, &format!("points=\"{}\"", points.join(" ")));
    }

    pub fn text(&mut self, at: [f64; 2], class: &str, words: &str) {
        self.turned_text(at, 0, class, words);
    }

    /// Text turned clockwise by so many degrees.
    pub fn turned_text(&mut self, [x, y]: [f64; 2], degrees: i32, class: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let turn = match degrees {
            0 => String::new(),
            _ => format!(" transform=\"rotate({degrees} {x:.1} {y:.1})\""),
        };
        let class = if class.is_empty() { class.into() } else { format!(" class=\"{class}\"") };
        writeln!(self.0, "<text x=\"{x:.1}\" y=\"{y:.1}\"{class}{turn}>{words}</text>")
            .expect("a string takes all");
    }
}
