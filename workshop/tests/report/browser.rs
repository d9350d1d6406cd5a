//! report.html in Chromium. Writes pictures to the target directory's tmp/.

#[path = "../../../tests/system/browser/chromium.rs"]
mod chromium;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use chromium::Browser;
use serde_json::{Value, json};

use crate::{RESULTS, show};

/// Pulled sizes in tests/results.json.
const PULLED: [f64; 4] = [371_920_441.0, 29_120_331.0, 421_337.0, 80_911_223.0];
const PULL_BARS: &str = "#chart-pull .bar";

/// Writes the report, and returns its URL.
fn report(directory: &Path) -> String {
    show(
        Path::new(RESULTS),
        &["--output", directory.to_str().unwrap()],
    );
    format!("file://{}", directory.join("report.html").display())
}

fn browser() -> Browser {
    let mut browser = Browser::start();
    for domain in ["DOM", "CSS"] {
        browser.call(&format!("{domain}.enable"), &json!({}));
    }
    browser
}

fn nodes(browser: &mut Browser, selector: &str) -> Vec<Value> {
    let root = browser.call("DOM.getDocument", &json!({ "depth": 0 }))["root"]["nodeId"].clone();
    let found = browser.call(
        "DOM.querySelectorAll",
        &json!({ "nodeId": root, "selector": selector }),
    );
    found["nodeIds"].as_array().unwrap().clone()
}

/// Returns left, top, right and bottom. Works without scripts in the page.
fn edges(browser: &mut Browser, node: &Value) -> [f64; 4] {
    let model = browser.call("DOM.getBoxModel", &json!({ "nodeId": node }))["model"].clone();
    // Two opposite corners of four, as x and y.
    [0, 1, 4, 5].map(|at| model["border"][at].as_f64().unwrap())
}

/// Returns the widths of all elements that match a selector.
fn widths(browser: &mut Browser, selector: &str) -> Vec<f64> {
    let nodes = nodes(browser, selector);
    let width = |[left, _, right, _]: [f64; 4]| right - left;
    nodes
        .iter()
        .map(|node| width(edges(browser, node)))
        .collect()
}

/// Returns a style of the first element that matches a selector.
fn style(browser: &mut Browser, selector: &str, property: &str) -> String {
    let node = nodes(browser, selector).remove(0);
    let styles = browser.call("CSS.getComputedStyleForNode", &json!({ "nodeId": node }));
    let mut styles = styles["computedStyle"].as_array().unwrap().iter();
    styles.find(|style| style["name"] == property).unwrap()["value"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn click(browser: &mut Browser, selector: &str) {
    let node = nodes(browser, selector).remove(0);
    let [left, top, right, bottom] = edges(browser, &node);
    let (x, y) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
    for kind in ["mousePressed", "mouseReleased"] {
        let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 });
        browser.call("Input.dispatchMouseEvent", &event);
    }
}

fn press_space(browser: &mut Browser) {
    for kind in ["keyDown", "keyUp"] {
        let event = json!({ "type": kind, "key": " ", "code": "Space", "text": " ", "windowsVirtualKeyCode": 32 });
        browser.call("Input.dispatchKeyEvent", &event);
    }
}

/// Fails unless the lengths of the bars are proportional to their bytes.
fn assert_to_scale(lengths: &[f64]) {
    assert_eq!(lengths.len(), PULLED.len());
    assert!(lengths[0] > 300.0, "{lengths:?}");
    for (length, bytes) in lengths.iter().zip(PULLED) {
        let expected = lengths[0] * bytes / PULLED[0];
        assert!(
            (length - expected).abs() < 0.1,
            "{length} instead of {expected} in {lengths:?}"
        );
    }
}

#[test]
#[ignore = "needs Chromium"]
fn the_page_works_and_sends_no_requests() {
    let directory = tempfile::tempdir().unwrap();
    let page = report(directory.path());
    let mut browser = browser();
    browser.open(&page);
    browser.picture("report-light");

    let linear = widths(&mut browser, PULL_BARS);
    assert_to_scale(&linear);
    assert_eq!(
        browser.script("document.querySelectorAll('.bar').length"),
        json!(6 * 4 - 4)
    );

    // With the keyboard.
    browser.script("document.getElementById('log').focus()");
    press_space(&mut browser);
    let log = widths(&mut browser, PULL_BARS);
    assert!(
        (log[0] - linear[0]).abs() > 1.0 && log[2] > 10.0 * linear[2],
        "{linear:?} {log:?}"
    );
    let order = |lengths: &[f64]| {
        lengths[0] > lengths[3] && lengths[3] > lengths[1] && lengths[1] > lengths[2]
    };
    assert!(order(&log), "{log:?}");
    browser.picture("report-log");
    press_space(&mut browser);
    assert_eq!(widths(&mut browser, PULL_BARS), linear);

    browser.media("dark");
    assert_eq!(
        browser.script("getComputedStyle(document.body).backgroundColor"),
        json!("rgb(17, 17, 17)")
    );
    browser.picture("report-dark");
    browser.media("light");

    browser.size(1280, 1080);
    let hidden = "(box => box.scrollWidth - box.clientWidth)(document.querySelector('.scroll'))";
    assert_eq!(
        browser.script(hidden),
        json!(0),
        "all columns must be visible on a common projector"
    );
    for width in [390, 1920] {
        browser.size(width, 1080);
        let over = browser.script("document.documentElement.scrollWidth - innerWidth");
        assert!(
            over.as_f64().unwrap() <= 0.0,
            "the page is {over} pixels wider than {width}"
        );
    }

    browser.assert_calm(&page, &[]);

    // At the end, because the browser's filter counts as a request.
    browser.call("Emulation.setEmulatedMedia", &json!({ "media": "print" }));
    browser.call(
        "Emulation.setEmulatedVisionDeficiency",
        &json!({ "type": "achromatopsia" }),
    );
    browser.picture("report-print-in-grey");
}

#[test]
#[ignore = "needs Chromium"]
fn the_race_takes_the_measured_time() {
    let directory = tempfile::tempdir().unwrap();
    let page = report(directory.path());
    let mut browser = browser();
    browser.open(&page);
    let visible =
        "[...document.querySelectorAll('.result')].map(e => getComputedStyle(e).visibility)";
    let way = "[...document.querySelectorAll('.runner')].map(e => e.getBoundingClientRect().width / e.parentElement.clientWidth)";
    assert_eq!(
        browser.script(visible),
        json!(["hidden", "hidden", "hidden"])
    );

    let begin = Instant::now();
    browser.script("document.getElementById('race').scrollIntoView()");
    browser.script("document.querySelector('#race button').click()");
    let mut halfway = None;
    while browser.script("document.getElementById('race').dataset.state") != json!("finished") {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the race does not end"
        );
        let ways = browser.script(way);
        if ways[2].as_f64() > Some(0.999) && ways[0].as_f64() < Some(0.9) {
            halfway = Some(ways);
        }
        thread::sleep(Duration::from_millis(20));
    }
    // The slowest start. A slow machine can only make the race longer.
    assert!(
        begin.elapsed() > Duration::from_millis(1230),
        "{:?}",
        begin.elapsed()
    );
    assert!(halfway.is_some(), "the fast image was never ahead");
    assert_eq!(
        browser.script(visible),
        json!(["visible", "visible", "visible"])
    );
    let result = browser.script("document.getElementById('result-3').textContent");
    assert_eq!(result, json!("1= · 0.345 s (0.324 – 0.398)"));
    browser.picture("report-race");
    browser.assert_calm(&page, &[]);
}

#[test]
#[ignore = "needs Chromium"]
fn the_page_is_complete_without_scripts() {
    let directory = tempfile::tempdir().unwrap();
    let page = report(directory.path());
    let mut browser = browser();
    browser.call(
        "Emulation.setScriptExecutionDisabled",
        &json!({ "value": true }),
    );
    browser.open(&page);
    let linear = widths(&mut browser, PULL_BARS);
    assert_to_scale(&linear);
    assert_eq!(style(&mut browser, "#result-1", "visibility"), "visible");
    assert_eq!(style(&mut browser, ".controls", "display"), "none");
    click(&mut browser, "#log");
    assert_ne!(widths(&mut browser, PULL_BARS), linear);
    browser.assert_calm(&page, &[]);
}

/// The other tests rely on this: the page's policy blocks foreign scripts, and the browser reports
/// it.
#[test]
#[ignore = "needs Chromium"]
fn the_policy_blocks_foreign_scripts() {
    let directory = tempfile::tempdir().unwrap();
    report(directory.path());
    let page = fs::read_to_string(directory.path().join("report.html")).unwrap();
    let file = directory.path().join("broken-into.html");
    let foreign =
        "<script>document.title = 'taken'</script><img src='https://example.com/x.png'></html>";
    fs::write(&file, page.replace("</html>", foreign)).unwrap();
    let page = format!("file://{}", file.display());
    let mut browser = browser();
    browser.open(&page);
    assert_eq!(
        browser.script("document.title"),
        json!("4 images, side by side")
    );
    assert_eq!(browser.complaints().len(), 2, "{:?}", browser.complaints());
    let refused = browser
        .events()
        .iter()
        .filter(|event| event["params"]["blockedReason"] == "csp");
    assert_eq!(refused.count(), 1);
}
