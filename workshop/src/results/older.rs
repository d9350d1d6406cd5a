//! Results files of older versions of the tool.

use serde_json::{Map, Value, json};

/// Keys of today's figures, and where formats 1 and 2 have them.
const FIGURES: [(&str, &str); 24] = [
    ("size", "/size/engine_bytes"),
    ("unpacked", "/size/unpacked_bytes"),
    ("pull", "/size/compressed_bytes"),
    ("layers", "/size/layers"),
    ("files", "/size/files"),
    ("executables", "/size/executables"),
    ("packages", "/size/packages"),
    ("shell", "/size/shell"),
    ("package-managers", "/size/package_managers"),
    ("setuid", "/size/setuid"),
    ("user", "/size/user"),
    ("base", "/size/base"),
    ("start", "/start/create_to_response"),
    ("start", "/start/create_to_answer"),
    ("process", "/start/process_to_response"),
    ("process", "/start/process_to_answer"),
    ("stop", "/stop/seconds"),
    ("memory", "/memory/idle"),
    ("loaded", "/memory/loaded"),
    ("rate", "/work/requests_per_second"),
    ("p50", "/work/p50_seconds"),
    ("p99", "/work/p99_seconds"),
    ("cpu", "/work/cpu_seconds_per_request"),
    ("errors", "/work/errors"),
];

/// Figures that were measured once, in one series per image.
const MEASURED_ONCE: [&str; 4] = ["rate", "p50", "p99", "cpu"];

/// Converts a file of format 1 or 2 to the present one.
pub fn upgrade(mut results: Value) -> Value {
    results["format"] = super::FORMAT.into();
    let settings = &mut results["settings"];
    settings["rounds"] = settings["runs"].take();
    let model = &mut results["machine"]["cpu_model"];
    *model = model["value"].take();
    for image in results["images"].as_array_mut().into_iter().flatten() {
        let figures: Map<String, Value> = FIGURES
            .iter()
            .filter_map(|(key, path)| Some(((*key).to_owned(), figure(key, image.pointer(path)?))))
            .collect();
        image["figures"] = figures.into();
    }
    results
}

fn figure(key: &str, old: &Value) -> Value {
    let value = &old["value"];
    if let Some(reason) = old.get("not_available") {
        return json!({"not_available": reason});
    }
    match key {
        "shell" | "base" if value.is_null() => json!({"words": "none"}),
        "shell" | "base" | "user" => json!({"words": value}),
        "package-managers" | "setuid" => json!({"names": value}),
        "packages" => {
            let kinds = value.as_array().into_iter().flatten();
            let kinds = kinds.filter_map(|kind| Some((kind["kind"].as_str()?, &kind["count"])));
            json!({"kinds": kinds.map(|(kind, count)| (kind.to_owned(), count.clone())).collect::<Map<_, _>>()})
        }
        "memory" | "loaded" => {
            let bytes = |part: &str| value[part].as_f64().unwrap_or_default();
            json!({"samples": [bytes("anonymous_bytes") + bytes("file_bytes")]})
        }
        "start" | "process" | "stop" => json!({"samples": value["samples"]}),
        _ if MEASURED_ONCE.contains(&key) => json!({"samples": [value]}),
        _ => json!({"count": value}),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::results::{Figure, Results};

    /// The file was written by version 0.1.0, and is shortened to one image.
    #[test]
    fn opens_a_file_of_format_2() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/results-2.json");
        let results = Results::read(Path::new(file)).unwrap();
        let image = &results.images[0];
        assert_eq!(image.figure("size"), Figure::Count(1_018_437_122));
        assert_eq!(image.figure("packages").value(), Some(422.0));
        assert_eq!(image.figure("setuid").value(), Some(8.0));
        assert_eq!(image.figure("shell"), Figure::Words("/bin/bash".into()));
        assert!(matches!(image.figure("stop"), Figure::Samples(samples) if samples.len() == 5));
        assert!(image.figure("memory").value() > Some(1e6));
        assert!(image.figure("rate").value() > Some(100.0));
        assert_eq!(image.figure("rate-new").reason(), Some("not measured"));
        assert_eq!(results.settings.rounds, 5);
    }
}
