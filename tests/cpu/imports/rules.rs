//! What is wrong with the modules of a crate.

use super::modules::{Import, Module};
use super::tokens::{is_next, item_length};
use std::collections::{BTreeMap, BTreeSet};

/// The layers, from the bottom. Modules of one layer may import each other.
const LAYERS: &[&[&str]] = &[
    &["rng", "manifest"],
    &["dtype", "shape", "error"],
    &["problem"],
    &["plan"],
    &["driver"],
    &["device", "tensor", "workspace"],
    &["dropout"],
    &["call"],
    &["cpu", "cuda"],
    &["ops"],
    &["calibration"],
    &["layers"],
    &["peft"],
];

/// Modules that import nothing.
const LEAVES: &[&str] = &["rng", "manifest"];

/// The constructors that promise something: where `unsafe` may occur outside of the driver.
const UNSAFE: &[(&str, &str)] = &[
    ("device.rs", "from_raw_stream"),
    ("tensor/view.rs", "from_raw"),
    ("tensor/view.rs", "from_raw"),
    ("workspace.rs", "from_raw"),
    ("workspace.rs", "lend_scratch"),
];

/// A shortest circle, if there is one.
fn circle(imports: &[Import]) -> Option<Vec<&Import>> {
    let mut shortest: Option<Vec<&Import>> = None;
    let files: BTreeSet<&str> = imports.iter().map(|import| import.from.as_str()).collect();
    for &start in &files {
        // By which import each file was reached, breadth first.
        let (mut reached, mut queue) = (BTreeMap::new(), vec![start]);
        let mut next = 0;
        while next < queue.len() && !reached.contains_key(start) {
            let at = queue[next];
            for import in imports.iter().filter(|import| import.from == at) {
                if !reached.contains_key(import.to.as_str()) {
                    reached.insert(import.to.as_str(), import);
                    queue.push(&import.to);
                }
            }
            next += 1;
        }
        let Some(&last) = reached.get(start) else { continue };
        let mut found = vec![last];
        while found[found.len() - 1].from != start {
            found.push(reached[found[found.len() - 1].from.as_str()]);
        }
        found.reverse();
        if shortest.as_ref().is_none_or(|shortest| found.len() < shortest.len()) {
            shortest = Some(found);
        }
    }
    shortest
}

/// All circles of files: each is taken apart by its last import, so that the next one shows.
pub fn circles(mut imports: Vec<Import>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(circle) = circle(&imports) {
        let lines: Vec<String> = circle.iter().map(|import| format!("    {import}")).collect();
        // A parent's declaration of its child stays, what the child imports of it goes.
        let goes = circle.iter().find(|import| !import.path.starts_with("self::"));
        let (from, to) = goes.map(|import| (import.from.clone(), import.to.clone())).unwrap();
        found.push(format!("  a circle:\n{}", lines.join("\n")));
        imports.retain(|import| (&import.from, &import.to) != (&from, &to));
    }
    found
}

pub fn layer_of(file: &str) -> Option<(usize, &str)> {
    let module = file.split('/').next().unwrap_or(file).trim_end_matches(".rs");
    let layer = LAYERS.iter().position(|layer| layer.contains(&module))?;
    Some((layer, module))
}

pub fn upward(imports: &[Import]) -> Vec<String> {
    let is_wrong = |import: &&Import| {
        if import.from == "lib.rs" {
            return false;
        }
        match (layer_of(&import.from), layer_of(&import.to)) {
            (Some((from, module)), Some((to, other))) => {
                from < to || (LEAVES.contains(&module) && module != other)
            }
            // lib.rs, or a module without a layer.
            _ => true,
        }
    };
    imports.iter().filter(is_wrong).map(|import| format!("  upward: {import}")).collect()
}

/// Each occurrence of `unsafe` outside of the driver and of the functions that may have it.
pub fn unsafe_code(modules: &BTreeMap<Vec<String>, Module>) -> Vec<String> {
    let (mut wrong, mut declared) = (Vec::new(), Vec::new());
    for module in modules.values().filter(|module| !module.file.starts_with("driver/")) {
        let (tokens, mut i) = (&module.tokens, 0);
        while i < tokens.len() {
            if tokens[i].text == "unsafe" {
                let function = tokens.get(i + 2).map_or("", |name| name.text.as_str());
                let constructor = (module.file.as_str(), function);
                if is_next(&tokens[i + 1..], &["fn"]) && UNSAFE.contains(&constructor) {
                    declared.push(constructor);
                    i += item_length(&tokens[i..]);
                    continue;
                }
                wrong.push(format!("  unsafe: src/{}:{}", module.file, tokens[i].line));
            }
            i += 1;
        }
    }
    declared.sort_unstable();
    if declared != UNSAFE {
        wrong.push(format!("  unsafe functions are {declared:?}, expected {UNSAFE:?}"));
    }
    wrong
}
