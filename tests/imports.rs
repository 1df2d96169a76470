//! Who imports whom: no circle of files, layers import downwards only, and unsafe code is in the
//! driver. ARCHITECTURE.md has the layers.
//!
//! An import is a path of the crate in a `use` statement or in code: from `crate`, `super` or
//! `self`, or from a child module. It is one of the file in which the path's last module is. So what
//! a mod.rs or lib.rs re-exports is imported from there, and since these declare their children,
//! which counts as an import as well, a child that imports from its parent is a circle. Tests are no
//! part of this.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, from the bottom. Modules of one layer may import each other.
const LAYERS: &[&[&str]] = &[
    &["rng", "manifest"],
    &["dtype", "shape", "error"],
    &["problem"],
    &["plan"],
    &["driver"],
    &["device", "tensor", "workspace"],
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
];

#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Words and single characters, without comments; of literals, an empty string is left.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let (mut tokens, mut i, mut line) = (Vec::new(), 0, 1);
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while i < chars.len() {
        let (start, mut text) = (i, String::new());
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                while i < chars.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                text = "\"\"".to_string();
            }
            // A raw string, r"..." or r#"..."#.
            'r' if at(i + 1) == '"' || (at(i + 1) == '#' && matches!(at(i + 2), '"' | '#')) => {
                i += 1;
                let mut hashes = 0;
                while at(i) == '#' {
                    (hashes, i) = (hashes + 1, i + 1);
                }
                i += 1;
                while i < chars.len()
                    && !(at(i) == '"' && (1..=hashes).all(|hash| at(i + hash) == '#'))
                {
                    i += 1;
                }
                i += 1 + hashes;
                text = "\"\"".to_string();
            }
            // A character, and not a lifetime.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i += if at(i + 1) == '\\' { 3 } else { 2 };
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                text = "\"\"".to_string();
            }
            c if is_word(c) => {
                while is_word(at(i)) {
                    i += 1;
                }
                text = chars[start..i].iter().collect();
            }
            c => {
                i += 1;
                if !c.is_whitespace() {
                    text = c.to_string();
                }
            }
        }
        if !text.is_empty() {
            tokens.push(Token { text, line });
        }
        line += chars[start..i.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// Whether these words are next.
fn is_next(tokens: &[Token], words: &[&str]) -> bool {
    tokens.len() >= words.len() && tokens.iter().zip(words).all(|(token, word)| token.text == *word)
}

/// The tokens up to the end of the item that begins them: its semicolon, or its braces.
fn item_length(tokens: &[Token]) -> usize {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token.text == "}" {
                    return i + 1;
                }
            }
            ";" | "," if depth == 0 => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

const CFG_TEST: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];

/// Without the items that are for tests alone. Their modules are returned by name.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut tests, mut i) = (Vec::new(), Vec::new(), 0);
    while i < tokens.len() {
        if !is_next(&tokens[i..], CFG_TEST) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        i += CFG_TEST.len();
        let item = &tokens[i..i + item_length(&tokens[i..])];
        if let Some(name) = item.iter().position(|token| token.text == "mod") {
            tests.push(item[name + 1].text.clone());
        }
        i += item.len();
    }
    (kept, tests)
}

/// A module in a file of its own.
struct Module {
    /// From `src`.
    file: String,
    path: Vec<String>,
    /// Children, and whether those outside of this module see them.
    children: Vec<(String, bool)>,
    tokens: Vec<Token>,
}

impl Module {
    fn name(&self) -> String {
        self.path.join("::")
    }
}

/// All modules by their paths, and all files that are for tests alone.
fn modules(src: &Path) -> (BTreeMap<Vec<String>, Module>, BTreeSet<PathBuf>) {
    let (mut modules, mut of_tests) = (BTreeMap::new(), BTreeSet::new());
    let mut left = vec![(vec![], src.join("lib.rs"))];
    while let Some((path, file)) = left.pop() {
        let source =
            fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (tokens, tests) = without_tests(tokens(&source));
        let dir = match file.file_name().and_then(|name| name.to_str()) {
            Some("lib.rs" | "mod.rs") => file.parent().expect("a folder").to_path_buf(),
            _ => file.with_extension(""),
        };
        of_tests.extend(tests.iter().map(|name| dir.join(name)));
        let mut children = Vec::new();
        for i in 0..tokens.len().saturating_sub(2) {
            if !(tokens[i].text == "mod" && tokens[i + 2].text == ";") {
                continue;
            }
            let name = tokens[i + 1].text.clone();
            // `pub`, or the end of `pub(crate)`.
            children.push((name.clone(), i > 0 && matches!(&*tokens[i - 1].text, "pub" | ")")));
            let file = [dir.join(&name).with_extension("rs"), dir.join(&name).join("mod.rs")];
            let file = file.into_iter().find(|file| file.is_file());
            let file = file.unwrap_or_else(|| panic!("no file of the module {name}"));
            left.push((path.iter().cloned().chain([name]).collect(), file));
        }
        let file = file.strip_prefix(src).expect("in src").display().to_string();
        modules.insert(path.clone(), Module { file, path, children, tokens });
    }
    (modules, of_tests)
}

/// All paths of a use tree from `tokens[0]` on, after what comes before it. A path in code is one,
/// too.
fn use_tree(tokens: &[Token], before: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let (mut path, mut i) = (before.to_vec(), 0);
    while i < tokens.len() {
        match tokens[i].text.as_str() {
            "{" => {
                i += 1;
                while i < tokens.len() && tokens[i].text != "}" {
                    i += use_tree(&tokens[i..], &path, paths);
                    if i < tokens.len() && tokens[i].text == "as" {
                        i += 2;
                    }
                    if i < tokens.len() && tokens[i].text == "," {
                        i += 1;
                    }
                }
                return i + 1;
            }
            "*" => {
                path.push("*".to_string());
                paths.push(path);
                return i + 1;
            }
            word => {
                path.push(word.to_string());
                i += 1;
                if !is_next(&tokens[i..], &[":", ":"]) {
                    break;
                }
                i += 2;
                // A turbofish, or a path that a macro goes on with.
                if tokens.get(i).is_none_or(|token| matches!(&*token.text, "<" | "$")) {
                    break;
                }
            }
        }
    }
    paths.push(path);
    i
}

struct Import {
    from: String,
    line: usize,
    to: String,
    path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Import { from, line, to, path } = self;
        write!(f, "src/{from}:{line} imports src/{to} ({path})")
    }
}

/// The module that a path ends in, as `from` sees it; `None` if it is not of this crate.
fn resolve<'m>(
    modules: &'m BTreeMap<Vec<String>, Module>,
    from: &Module,
    path: &[String],
) -> Option<&'m Module> {
    let mut segments = path.iter().map(String::as_str).peekable();
    let mut at: Vec<String> = match segments.peek().copied()? {
        "crate" => {
            segments.next();
            vec![]
        }
        "self" | "super" => from.path.clone(),
        first if from.children.iter().any(|(child, _)| child == first) => from.path.clone(),
        _ => return None,
    };
    for segment in segments {
        match segment {
            "self" => continue,
            "super" => {
                at.pop();
                continue;
            }
            _ => {}
        }
        let child = modules[&at].children.iter().find(|(child, _)| child == segment);
        // What others see by the name of a private module is an item of the same name.
        let sees = |is_visible| is_visible || from.path.starts_with(&at);
        match child {
            Some(&(_, is_visible)) if sees(is_visible) => at.push(segment.to_string()),
            _ => break,
        }
    }
    Some(&modules[&at])
}

fn imports(modules: &BTreeMap<Vec<String>, Module>) -> Vec<Import> {
    let mut imports = Vec::new();
    for module in modules.values() {
        let tokens = &module.tokens;
        let mut add = |line: usize, path: &[String]| {
            let Some(to) = resolve(modules, module, path) else { return };
            if to.file != module.file {
                let (from, to) = (module.file.clone(), to.file.clone());
                imports.push(Import { from, line, to, path: path.join("::") });
            }
        };
        let mut i = 0;
        while i < tokens.len() {
            let line = tokens[i].line;
            let is_use = tokens[i].text == "use";
            let after_colon = i > 0 && tokens[i - 1].text == ":";
            let is_path = matches!(&*tokens[i].text, "crate" | "super" | "self")
                && is_next(&tokens[i + 1..], &[":", ":"])
                && !after_colon;
            if is_next(&tokens[i..], &["mod"]) && is_next(&tokens[i + 2..], &[";"]) {
                add(line, &["self".to_string(), tokens[i + 1].text.clone()]);
            }
            i += usize::from(is_use || !is_path);
            if is_use || is_path {
                let mut paths = Vec::new();
                i += use_tree(&tokens[i..], &[], &mut paths);
                paths.iter().for_each(|path| add(line, path));
            }
        }
    }
    imports
}

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
fn circles(mut imports: Vec<Import>) -> Vec<String> {
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

fn layer_of(file: &str) -> Option<(usize, &str)> {
    let module = file.split('/').next().unwrap_or(file).trim_end_matches(".rs");
    let layer = LAYERS.iter().position(|layer| layer.contains(&module))?;
    Some((layer, module))
}

fn upward(imports: &[Import]) -> Vec<String> {
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
fn unsafe_code(modules: &BTreeMap<Vec<String>, Module>) -> Vec<String> {
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

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn files_import_in_no_circle() {
    let circles = circles(imports(&modules(&source()).0));
    assert!(circles.is_empty(), "{} circles:\n{}", circles.len(), circles.join("\n"));
}

#[test]
fn layers_import_downwards() {
    let upward = upward(&imports(&modules(&source()).0));
    assert!(upward.is_empty(), "{} imports:\n{}", upward.len(), upward.join("\n"));
}

#[test]
fn unsafe_code_is_in_the_driver() {
    let wrong = unsafe_code(&modules(&source()).0);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Every file is a module, or for tests alone; so nothing above is passed over.
#[test]
fn every_file_is_a_module() {
    fn files(dir: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => files(&path, all),
                false => all.push(path),
            }
        }
    }
    let (modules, of_tests) = modules(&source());
    let known: BTreeSet<PathBuf> =
        modules.values().map(|module| source().join(&module.file)).collect();
    let mut all = Vec::new();
    files(&source(), &mut all);
    let is_test = |file: &PathBuf| {
        let without = file.with_extension("");
        of_tests.iter().any(|test| file.starts_with(test) || *test == without)
    };
    all.retain(|file| file.extension().is_some_and(|ext| ext == "rs"));
    all.retain(|file| !known.contains(file) && !is_test(file));
    assert!(all.is_empty(), "no module of the crate: {all:?}");
    let top = modules.keys().filter(|path| path.len() == 1);
    for path in top {
        let name = modules[path].name();
        assert!(layer_of(&name).is_some(), "{name} has no layer");
    }
}

/// The checks themselves, on sources that are wrong in known ways.
#[test]
fn wrong_imports_are_found() {
    let module = |path: &[&str], file: &str, children: &[(&str, bool)], source: &str| Module {
        file: file.to_string(),
        path: path.iter().map(|name| name.to_string()).collect(),
        children: children.iter().map(|&(name, seen)| (name.to_string(), seen)).collect(),
        tokens: without_tests(tokens(source)).0,
    };
    let all = [
        module(
            &[],
            "lib.rs",
            &[("dtype", false), ("plan", false), ("ops", true)],
            "mod dtype; mod plan; pub mod ops; pub use dtype::DType;",
        ),
        module(
            &["dtype"],
            "dtype.rs",
            &[],
            r##"
            // use crate::ops::a;
            /* use crate::ops::b; /* nested */ */
            const QUOTED: &str = "use crate::ops::c; \" unsafe"; const RAW: &str = r#"crate::ops"#;
            fn quote() -> char { '"' }
            fn lifetime<'a>(x: &'a str) -> &'a str { x }
            #[cfg(test)]
            mod tests { use crate::ops::Forward; fn f() { unsafe {} } }
            fn inline() { crate::plan::mma::tile::<u8>() }"##,
        ),
        module(
            &["plan"],
            "plan/mod.rs",
            &[("mma", true), ("path", false)],
            "pub(crate) mod mma; mod path; pub use path::Path;",
        ),
        module(
            &["plan", "mma"],
            "plan/mma.rs",
            &[],
            "use super::Path;\nuse std::{fmt, io as other};\npub fn tile() {}",
        ),
        module(
            &["plan", "path"],
            "plan/path.rs",
            &[],
            "use crate::{dtype::{DType as D, self},\n DType};",
        ),
        module(
            &["ops"],
            "ops/mod.rs",
            &[("round", false)],
            "mod round; pub use round::round; fn f() { unsafe { g() } }",
        ),
        module(&["ops", "round"], "ops/round.rs", &[], "use crate::plan::{path::Path, mma};"),
    ];
    let modules: BTreeMap<_, _> = all.into_iter().map(|one| (one.path.clone(), one)).collect();
    let imports = imports(&modules);
    let has = |from: &str, to: &str, line: usize| {
        imports.iter().any(|import| (&*import.from, &*import.to, import.line) == (from, to, line))
    };
    assert!(has("dtype.rs", "plan/mma.rs", 9), "a path in code");
    assert!(has("plan/mma.rs", "plan/mod.rs", 1), "a re-export of the parent");
    assert!(has("plan/path.rs", "dtype.rs", 1) && has("plan/path.rs", "lib.rs", 1));
    assert!(has("ops/round.rs", "plan/mma.rs", 1));
    assert!(has("ops/round.rs", "plan/mod.rs", 1), "path is private, so this is an item");
    assert!(has("ops/mod.rs", "ops/round.rs", 1) && has("lib.rs", "dtype.rs", 1));
    assert!(!imports.iter().any(|import| import.from == "dtype.rs" && import.to != "plan/mma.rs"));
    let upward = upward(&imports);
    assert_eq!(upward.len(), 2, "dtype of plan, and path of lib: {upward:?}");
    let circles = circles(imports);
    assert!(circles.iter().any(|circle| circle.contains("plan/mma.rs:1 imports src/plan/mod.rs")));
    assert!(circles.iter().any(|circle| circle.contains("plan/path.rs:1 imports src/lib.rs")));
    let wrong = unsafe_code(&modules);
    assert!(wrong[0].contains("src/ops/mod.rs:1") && wrong.len() == 2, "{wrong:?}");
}
