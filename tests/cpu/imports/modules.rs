//! The modules of the crate, and what they import.

use super::tokens::{Token, is_next, tokens, without_tests};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A module in a file of its own.
pub struct Module {
    /// From `src`.
    pub file: String,
    pub path: Vec<String>,
    /// Children, and whether those outside of this module see them.
    pub children: Vec<(String, bool)>,
    pub tokens: Vec<Token>,
}

impl Module {
    pub fn name(&self) -> String {
        self.path.join("::")
    }
}

/// All modules by their paths, and all files that are for tests alone.
pub fn modules(src: &Path) -> (BTreeMap<Vec<String>, Module>, BTreeSet<PathBuf>) {
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

pub struct Import {
    pub from: String,
    pub line: usize,
    pub to: String,
    pub path: String,
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

pub fn imports(modules: &BTreeMap<Vec<String>, Module>) -> Vec<Import> {
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
