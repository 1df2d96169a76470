//! Who imports whom: no circle of files, layers import downwards only, and unsafe code is in the
//! driver. ARCHITECTURE.md has the layers.
//!
//! An import is a path of the crate in a `use` statement or in code: from `crate`, `super` or
//! `self`, or from a child module. It is one of the file in which the path's last module is. So
//! what a mod.rs or lib.rs re-exports is imported from there, and since these declare their
//! children, which counts as an import as well, a child that imports from its parent is a circle.
//! Tests are no part of this.

mod modules;
mod rules;
mod tokens;

use modules::{Module, imports, modules};
use rules::{circles, layer_of, unsafe_code, upward};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tokens::{tokens, without_tests};

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
