//! The table of the README: what an adapter costs, by regime and card.

use crate::overhead::{Key, Layer, Overhead};
use std::collections::{BTreeMap, BTreeSet};

/// Layers that belong together.
struct Regime {
    name: &'static str,
    /// Whether by the kernels that serve every GPU.
    generic: bool,
    holds: fn(&Key) -> bool,
}

const REGIMES: [Regime; 9] = [
    hopper("T ≥ 8192, d ≥ 4096", |key| single(key) && key.t >= 8192 && d(key) >= 4096),
    hopper("T ≥ 8192, d = 1024", |key| single(key) && key.t >= 8192 && d(key) == 1024),
    hopper("T = 2048", |key| single(key) && key.t == 2048),
    hopper("64 < T ≤ 1024", |key| single(key) && 64 < key.t && key.t <= 1024),
    hopper("T ≤ 64", |key| single(key) && key.t <= 64),
    hopper("q, k, v or gate, up together, T ≥ 8192", |key| !single(key) && key.t >= 8192),
    generic("kernels for every GPU, T ≤ 32", |key| single(key) && key.t <= 32),
    generic("the same, 64 ≤ T ≤ 1024", |key| single(key) && 64 <= key.t && key.t <= 1024),
    generic("the same, T ≥ 2048", |key| single(key) && key.t >= 2048),
];

const fn hopper(name: &'static str, holds: fn(&Key) -> bool) -> Regime {
    Regime { name, generic: false, holds }
}

const fn generic(name: &'static str, holds: fn(&Key) -> bool) -> Regime {
    Regime { name, generic: true, holds }
}

fn single(key: &Key) -> bool {
    key.d.all().len() == 1
}

fn d(key: &Key) -> u64 {
    key.d.all().iter().sum()
}

/// The ranks of the table.
const RANKS: [u64; 2] = [16, 64];

const NOTE: &str = "\
Times over that of the frozen layer alone by the best cuBLASLt algorithm: geometric mean and range \
over layers, r = 16 and 64, k and d multiples of 8. *By cuBLASLt* is the fastest sequence of its \
calls.";

/// A result file and its name.
type File = (String, Overhead);

/// The newest measurement of each layer on a card, by whether the kernels for every GPU ran alone.
type Card<'a> = BTreeMap<(bool, &'a Key), (&'a Layer, &'a File)>;

/// Markdown, with links to the sections of the page in the folder `page`.
pub fn costs(files: &[File], page: &str) -> String {
    let mut by_date: Vec<_> = files.iter().collect();
    by_date.sort_by_key(|(_, results)| &results.header.date);
    let mut cards: BTreeMap<&str, Card<'_>> = BTreeMap::new();
    for file in by_date {
        let (_, results) = file;
        let generic = results.is_generic();
        // Files with dropout tell of that.
        let in_table = |layer: &&Layer| {
            regime(&layer.key, generic).is_some() && layer.ratio("forward_dropout").is_none()
        };
        let layers: Vec<&Layer> = results.layers.iter().filter(in_table).collect();
        if layers.is_empty() {
            continue;
        }
        let card = cards.entry(results.header.short_card()).or_default();
        card.extend(layers.into_iter().map(|layer| ((generic, &layer.key), (layer, file))));
    }
    // Files of which a row is in the table.
    let mut sources: BTreeMap<(&str, &str, &str), BTreeSet<&str>> = BTreeMap::new();
    for (_, (name, Overhead { header, .. })) in cards.values().flat_map(BTreeMap::values) {
        let source = (&*header.card, &*header.date, &*header.commit);
        sources.entry(source).or_default().insert(name);
    }

    let mut text = String::from("| |");
    for card in cards.keys() {
        text += &format!(" {card}: forward | by cuBLASLt | backward | by cuBLASLt |");
    }
    text += "\n|---|";
    cards.keys().for_each(|_| text += ":---:|:---:|:---:|:---:|");
    for one in &REGIMES {
        let row: Vec<String> = cards.values().flat_map(|card| cells(one, card)).collect();
        if row.iter().any(|cell| cell != NOTHING) {
            text += &format!("\n| {} | {} |", one.name, row.join(" | "));
        }
    }
    text += &format!("\n\n{NOTE}\n\n");
    for ((card, date, commit), names) in sources {
        let links = names.iter().map(|name| format!("[{name}]({page}/README.md#{name})"));
        let links: Vec<String> = links.collect();
        text += &format!("- {card}, {date}, commit {commit}: {}\n", links.join(", "));
    }
    text
}

fn regime(key: &Key, generic: bool) -> Option<&'static Regime> {
    let aligned = [&[key.k], key.d.all()].concat().iter().all(|size| size.is_multiple_of(8));
    let counted = aligned && RANKS.contains(&key.r);
    REGIMES.iter().find(|regime| counted && regime.generic == generic && (regime.holds)(key))
}

const NOTHING: &str = "–";

fn cells(regime: &Regime, card: &Card<'_>) -> [String; 4] {
    let layers = || {
        let of_regime =
            |(generic, key): &(bool, &Key)| *generic == regime.generic && (regime.holds)(key);
        card.iter().filter(move |(place, _)| of_regime(place)).map(|(_, (layer, _))| *layer)
    };
    let of = |ops: &[&str]| {
        let best = |layer: &Layer| {
            ops.iter().filter_map(|op| layer.ratio(op)).min_by(|a, b| a.total_cmp(b))
        };
        layers().filter_map(best).collect::<Vec<f64>>()
    };
    [
        cell(&of(&["forward"]), "**"),
        cell(&of(&["addmm_forward", "augmented_forward"]), ""),
        cell(&of(&["backward"]), "**"),
        cell(&of(&["addmm_backward"]), ""),
    ]
}

fn cell(ratios: &[f64], emphasis: &str) -> String {
    if ratios.is_empty() {
        return NOTHING.into();
    }
    let mean = geometric_mean(ratios);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{emphasis}{mean:.2}{emphasis}<br>{least:.2}–{most:.2}")
}

pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// A text with `table` between the two lines that mark its place.
pub fn insert(text: &str, table: &str) -> Result<String, String> {
    const LAST: &str = "<!-- /costs -->";
    let missing = || format!("there is no line `<!-- costs: .. -->`, or no `{LAST}` after it");
    let marker = text.find("<!-- costs").ok_or_else(missing)?;
    let first = marker + text[marker..].find('\n').ok_or_else(missing)? + 1;
    let last = first + text[first..].find(LAST).ok_or_else(missing)?;
    Ok(format!("{}\n{}\n\n{}", &text[..first], table.trim_end(), &text[last..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overhead::sample;

    /// A file of these rows by the kernels of a generation, or by those for every GPU.
    fn file(card: &str, date: &str, path: &str, rows: &[(&str, [u64; 4], f64)]) -> Overhead {
        let rows: Vec<_> =
            rows.iter().map(|&(op, sizes, ratio)| (op, sizes, [ratio, 1.0])).collect();
        let mut results = sample(&rows);
        results.header.card = card.into();
        results.header.date = date.into();
        let measured = results.layers.iter_mut().flat_map(|layer| layer.measured.values_mut());
        measured.for_each(|measured| measured.path = path.into());
        results
    }

    fn row(table: &str, regime: &str) -> Vec<String> {
        let start = format!("| {regime} |");
        let line = table.lines().find(|line| line.starts_with(&start));
        line.unwrap_or("").split('|').skip(2).map(|cell| cell.trim().to_string()).collect()
    }

    #[test]
    fn a_row_has_the_means_and_ranges_of_its_regime() {
        let (small, large) = ([8192, 4096, 4096, 16], [16384, 4096, 8192, 64]);
        let h100 = file(
            "NVIDIA H100 80GB HBM3",
            "2026-01-02",
            "hopper",
            &[
                ("forward", small, 0.8),
                ("forward", large, 1.25),
                ("backward", small, 1.1),
                ("addmm_forward", small, 1.5),
                ("augmented_forward", small, 1.2),
                // In no regime: another rank, and rows that are no multiple of 16 bytes.
                ("forward", [8192, 4096, 4096, 8], 9.0),
                ("forward", [8192, 4096, 4097, 16], 9.0),
            ],
        );
        let h200 = file("NVIDIA H200", "2026-01-01", "mma", &[("forward", [16, 64, 64, 16], 1.3)]);
        let table = costs(&[("one".into(), h100), ("two".into(), h200)], "results");
        assert_eq!(
            row(&table, "T ≥ 8192, d ≥ 4096"),
            [
                "**1.00**<br>0.80–1.25",
                "1.20<br>1.20–1.20",
                "**1.10**<br>1.10–1.10",
                "–",
                "–",
                "–",
                "–",
                "–",
                "",
            ]
        );
        let every = row(&table, "kernels for every GPU, T ≤ 32");
        assert_eq!(every[..5], ["–", "–", "–", "–", "**1.30**<br>1.30–1.30"]);
        assert!(row(&table, "T = 2048").is_empty(), "nothing was measured");
        assert!(
            table.contains("NVIDIA H200, 2026-01-01, commit none: [two](results/README.md#two)")
        );
    }

    #[test]
    fn the_newest_measurement_counts() {
        let of = |date, ratio| file("A", date, "hopper", &[("forward", [1, 64, 64, 16], ratio)]);
        let files = [("new".into(), of("2026-02-01", 1.5)), ("old".into(), of("2026-01-31", 9.0))];
        let text = costs(&files, "");
        assert_eq!(row(&text, "T ≤ 64")[0], "**1.50**<br>1.50–1.50");
        assert!(text.contains("[new]") && !text.contains("[old]"), "{text}");
    }

    #[test]
    fn the_table_replaces_what_is_between_the_marks() {
        let text = "a\n<!-- costs: made -->\nold\n<!-- /costs -->\nb\n";
        let new = "a\n<!-- costs: made -->\n\nnew\n\n<!-- /costs -->\nb\n";
        assert_eq!(insert(text, "new\n").unwrap(), new);
        assert_eq!(insert(new, "new\n").unwrap(), new);
        for text in ["", "<!-- /costs -->\n<!-- costs -->\n", "<!-- costs -->\n"] {
            assert!(insert(text, "").unwrap_err().contains("there is no line"), "{text}");
        }
    }
}
