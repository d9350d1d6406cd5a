//! The modules of src/ depend on each other in one direction only, as in the picture of
//! docs/architecture.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Maps each module to the modules that it uses.
type Dependencies = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_have_no_import_cycle() {
    let dependencies = dependencies();
    for module in dependencies.keys() {
        let mut path = vec![module.as_str()];
        assert!(
            !returns_to(module, &dependencies, &mut path),
            "import cycle: {}",
            path.join(" -> ")
        );
    }
}

/// Extends `path` back to `start` and returns true, or returns false if no import leads there.
fn returns_to<'a>(start: &str, dependencies: &'a Dependencies, path: &mut Vec<&'a str>) -> bool {
    for next in &dependencies[*path.last().unwrap()] {
        let is_visited = path.contains(&next.as_str());
        path.push(next);
        if next == start || !is_visited && returns_to(start, dependencies, path) {
            return true;
        }
        path.pop();
    }
    false
}

#[test]
fn module_picture_matches_the_imports() {
    let document = include_str!("../../docs/architecture.md");
    let picture = document
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("docs/architecture.md begins with a picture");
    let mut drawn = Dependencies::new();
    for line in picture.lines().rev() {
        let mut words = line.split_whitespace().map(str::to_owned);
        let module = words.next().unwrap();
        let used: BTreeSet<_> = words.collect();
        for other in &used {
            assert!(
                drawn.contains_key(other),
                "{module} uses {other}, which is not below it in the picture"
            );
        }
        drawn.insert(module, used);
    }
    assert_eq!(drawn, dependencies(), "left: docs/architecture.md");
}

/// Reads the dependencies from the sources.
fn dependencies() -> Dependencies {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(src).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_some_and(|extension| extension == "rs") && module != "lib" {
            sources.insert(module, fs::read_to_string(path).unwrap());
        }
    }
    let modules: BTreeSet<_> = sources.keys().cloned().collect();
    sources
        .into_iter()
        .map(|(module, source)| {
            let mut used = named_modules(&source, &modules);
            used.remove(&module);
            (module, used)
        })
        .collect()
}

/// Finds `crate::NAME` and, for main.rs, `timber::NAME` or `timber::{NAME, …}`. Unit tests may use
/// any module.
fn named_modules(source: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let code: Vec<_> = source
        .lines()
        .map(|line| line.split("//").next().unwrap())
        .collect();
    let code = code.join("\n");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut names = BTreeSet::new();
    for root in ["crate::", "timber::"] {
        for rest in code.split(root).skip(1) {
            let list = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap(),
                None => rest.split(|c| !is_name(c)).next().unwrap(),
            };
            let found = list.split(|c| !is_name(c)).map(str::to_owned);
            names.extend(found.filter(|name| modules.contains(name)));
        }
    }
    names
}
