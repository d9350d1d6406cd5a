//! The modules of src/ depend on each other in one direction only, as in the picture of
//! docs/architecture.md. So do those of workshop/src/, where the files in a directory belong to the
//! module of that name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Maps each module to the modules that it uses.
type Dependencies = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_have_no_import_cycle() {
    for directory in ["src", "workshop/src"] {
        let dependencies = dependencies(directory);
        assert!(dependencies.len() > 10, "{directory}: {dependencies:?}");
        for module in dependencies.keys() {
            let mut path = vec![module.as_str()];
            assert!(
                !returns_to(module, &dependencies, &mut path),
                "import cycle in {directory}: {}",
                path.join(" -> ")
            );
        }
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
    assert_eq!(drawn, dependencies("src"), "left: docs/architecture.md");
}

/// Reads the dependencies from the sources.
fn dependencies(directory: &str) -> Dependencies {
    let mut sources = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    read_sources(&root, None, &mut sources);
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

/// Reads the code of each module, with that of its submodules, without comments and unit tests.
fn read_sources(directory: &Path, module: Option<&str>, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = module.unwrap_or(name);
        if path.is_dir() {
            read_sources(&path, Some(module), sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "lib" {
            let source = fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap();
            let code = source.lines().map(|line| line.split("//").next().unwrap());
            let all = sources.entry(module.to_owned()).or_default();
            all.extend(code.flat_map(|line| [line, "\n"]));
        }
    }
}

/// Finds `crate::NAME` and `crate::{NAME, NAME::…}`, and for main.rs the same with `timber`.
fn named_modules(code: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for root in ["crate::", "timber::"] {
        for rest in code.split(root).skip(1) {
            names.extend(first_names(rest).filter(|name| modules.contains(name)));
        }
    }
    names
}

/// Returns the name at the start of a path, or those in a group in braces.
fn first_names(path: &str) -> impl Iterator<Item = String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut items = vec![String::new()];
    let mut depth = 0;
    for c in path.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => items.push(String::new()),
            c if c.is_whitespace() && depth == 1 => {}
            c => items.last_mut().unwrap().push(c),
        }
        if depth == 0 && !is_name(c) {
            break;
        }
    }
    let name = move |item: String| item.split(|c| !is_name(c)).next().unwrap().to_owned();
    items.into_iter().map(name)
}
