//! The page in Chromium, served by real processes. Run `.ci/install`, then, as root,
//! `cargo test --manifest-path tests/system/Cargo.toml --test browser -- --ignored`: each process gets a
//! host name of its own. Leaves screenshots in tmp/ of the target directory.

mod balancer;
mod chromium;
mod policy;
#[allow(dead_code, reason = "tests/service uses the rest")]
#[path = "../../support/mod.rs"]
mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use balancer::{Backend, Balancer};
use chromium::Browser;
use serde_json::json;
use support::{TEST_TIMEOUT, Timber, shell};

/// Starts a service with a host name of its own, like in a container.
fn start(release: &str, host: &str) -> Timber {
    let script = r#"
        serve='hostname "$1" && exec "$0" -b 127.0.0.1:0 --release "$2"'
        exec /usr/bin/unshare --uts /bin/sh -c "$serve" "$0" "$HOST" "$RELEASE""#;
    let mut command = shell(script);
    Timber::spawn(
        command
            .env("HOST", host)
            .env("RELEASE", release)
            .env("PATH", "/usr/bin:/bin"),
    )
}

fn wait_for(browser: &mut Browser, what: &str) {
    let begin = Instant::now();
    while browser.script(what) != json!(true) {
        assert!(
            begin.elapsed() < 2 * TEST_TIMEOUT,
            "timeout: {what}\n{}",
            text(browser, "body")
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn text(browser: &mut Browser, selector: &str) -> String {
    let text = browser.script(&format!("document.querySelector({selector:?}).innerText"));
    text.as_str().unwrap().to_owned()
}

fn number(browser: &mut Browser, id: &str) -> usize {
    text(browser, &format!("#{id}")).parse().unwrap()
}

/// Returns class and letter of each filled square, oldest first.
fn squares(browser: &mut Browser) -> Vec<(String, String)> {
    let filled = "[...document.querySelectorAll('#squares i[class]')].map(i => [i.className, i.textContent])";
    serde_json::from_value(browser.script(filled)).unwrap()
}

/// Asserts that the page has requested only what it shows.
fn assert_calm(browser: &Browser, page: &str) {
    browser.assert_calm(
        page,
        &[&format!("{page}sample"), &format!("{page}index"), "data:,"],
    );
}

/// Clicks the pause button and waits for the pending requests.
fn pause(browser: &mut Browser) {
    browser.script("document.getElementById('pause').click()");
    wait_for(browser, "!document.querySelector('#squares .pending')");
}

#[test]
#[ignore = "needs Chromium"]
fn page_shows_a_rollout() {
    let old = ["birch", "elm", "oak"].map(|host| start("1", host));
    let new = ["larch", "pine", "yew"].map(|host| start("2", host));
    let to = |service: &Timber| Backend::Serves(service.address);
    let balancer = Balancer::start(old.iter().map(to).collect());
    let mut browser = Browser::start();
    let page = balancer.url();
    browser.open(&page);
    wait_for(&mut browser, "+served.innerText >= 9");
    assert_eq!(text(&mut browser, "h1"), "timber, release 1");
    assert_eq!(
        browser.script("document.querySelectorAll('#replicas tbody tr').length"),
        json!(3)
    );

    // Replaces one service after another, like a swarm, with a failure at each step.
    let mut backends: Vec<_> = old.iter().map(to).collect();
    for (number, (service, without)) in new
        .iter()
        .zip([Backend::Drops, Backend::Fails, Backend::Stalls])
        .enumerate()
    {
        backends[number] = without;
        balancer.set(&backends);
        let (_, failed, lost) = counts(&mut browser);
        wait_for(
            &mut browser,
            &format!("+failed.innerText + +lost.innerText > {}", failed + lost),
        );
        backends[number] = to(service);
        balancer.set(&backends);
        let (answered, ..) = counts(&mut browser);
        wait_for(
            &mut browser,
            &format!("+served.innerText > {}", answered + 6),
        );
        if number == 0 {
            assert_eq!(text(&mut browser, "h1"), "timber, release 1 and 2");
        }
        if number == 1 {
            browser.picture("page-light");
            browser.media("dark");
            browser.picture("page-dark");
            browser.media("light");
        }
    }
    wait_for(&mut browser, "document.title === 'timber, release 2'");
    assert_eq!(text(&mut browser, "h1"), "timber, release 2");
    pause(&mut browser);
    browser.picture("page-after");

    // The squares match the counts of the services and the balancer. Late responses count as lost.
    let (answered, failed, lost) = counts(&mut browser);
    let served: usize = old.iter().chain(&new).map(samples).sum();
    let late = lost - balancer.lost();
    assert!(
        (answered..=answered + late).contains(&served),
        "{served} served, {answered} shown, {late} late"
    );
    assert_eq!(failed, balancer.failed());
    assert!(failed > 0 && lost > 1, "{failed} failed, {lost} lost");
    let squares = squares(&mut browser);
    let of = |kind: &str| squares.iter().filter(|(class, _)| class == kind).count();
    assert_eq!(
        (of("served"), of("failed"), of("lost")),
        (answered, failed, lost)
    );
    assert_eq!(squares.len(), answered + failed + lost);
    // Letters in order of appearance: the old services first, only new ones at the end.
    let is_of = |hosts: &str, squares: &[(String, String)]| {
        squares
            .iter()
            .all(|(kind, letter)| kind == "lost" || hosts.contains(letter.as_str()))
    };
    assert!(is_of("ABC", &squares[..6]), "{squares:?}");
    assert!(is_of("DEF", &squares[squares.len() - 6..]), "{squares:?}");

    // The legend has the newest service on top and the number of its responses.
    let legend = browser.script(
        "[...document.querySelectorAll('#replicas tbody tr')].map(row => [row.className, row.cells[0].innerText, \
         row.querySelector('b').innerText, row.querySelector('code').innerText])",
    );
    let hosts = |row: usize| legend[row][3].as_str().unwrap();
    let expected: Vec<_> = (0..6)
        .map(|row| {
            let (class, release) = if row < 3 {
                ("", "release 2")
            } else {
                ("gone", "release 1")
            };
            let letter = &"FEDCBA"[row..=row];
            json!([class, letter, release, hosts(row)])
        })
        .collect();
    assert_eq!(legend, json!(expected));
    let mut all: Vec<_> = (0..6).map(hosts).collect();
    all.sort_unstable();
    assert_eq!(all, ["birch", "elm", "larch", "oak", "pine", "yew"]);
    let sum = "[...document.querySelectorAll('#replicas tbody tr')].reduce((n, row) => n + +row.cells[2].innerText, 0)";
    assert_eq!(browser.script(sum), json!(answered));
    let colours = "new Set([...document.querySelectorAll('#replicas i')].map(i => getComputedStyle(i).backgroundColor)).size";
    assert_eq!(browser.script(colours), json!(6));

    assert_calm(&browser, &page);
}

fn counts(browser: &mut Browser) -> (usize, usize, usize) {
    (
        number(browser, "served"),
        number(browser, "failed"),
        number(browser, "lost"),
    )
}

/// Returns the number of samples that the service has served.
fn samples(service: &Timber) -> usize {
    let metrics = service.get("/metrics").text();
    let name = r#"http_requests_total{route="/sample",code="2xx"} "#;
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
#[ignore = "needs Chromium"]
fn oldest_row_of_squares_is_removed_when_all_are_filled() {
    let service = start("1", "oak");
    let balancer = Balancer::start(vec![Backend::Serves(service.address)]);
    let mut browser = Browser::start();
    let page = balancer.url();
    browser.open(&page);
    wait_for(&mut browser, "+served.innerText > 2");
    pause(&mut browser);
    // As fast as possible instead of four per second.
    let all = browser
        .script("document.querySelectorAll('#squares i').length")
        .as_u64()
        .unwrap();
    browser.script(&format!(
        "(async () => {{ for (let n = 0; n < {all}; n++) await sample() }})()"
    ));
    wait_for(&mut browser, &format!("+served.innerText > {all}"));
    wait_for(&mut browser, "!document.querySelector('#squares .pending')");
    let filled = squares(&mut browser).len() as u64;
    assert!(
        filled < all && filled + 60 > all,
        "{filled} of {all} are filled"
    );
    assert_eq!(
        browser.script("document.querySelectorAll('#squares i').length"),
        json!(all)
    );
    assert_calm(&browser, &page);
}

#[test]
#[ignore = "needs Chromium"]
fn page_without_scripts_is_a_plain_table() {
    let service = start("1", "oak");
    let balancer = Balancer::start(vec![Backend::Serves(service.address)]);
    let mut browser = Browser::start();
    browser.call(
        "Emulation.setScriptExecutionDisabled",
        &json!({ "value": true }),
    );
    let page = balancer.url();
    browser.open(&page);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(samples(&service), 0);
    browser.picture("page-without-scripts");
    // The rendered text, without a script.
    let layout = browser.call(
        "DOMSnapshot.captureSnapshot",
        &json!({ "computedStyles": [] }),
    );
    let words = layout["documents"][0]["layout"]["text"]
        .as_array()
        .unwrap()
        .iter();
    let shown: Vec<_> = words
        .filter_map(|index| {
            layout["strings"]
                .get(usize::try_from(index.as_i64()?).ok()?)?
                .as_str()
        })
        .map(str::trim)
        .collect();
    for part in [
        "timber, release 1",
        "oak",
        &service.child.id().to_string(),
        "Try GET /index",
    ] {
        assert!(shown.contains(&part), "{part} is not in {shown:?}");
    }
    for part in ["served", "Pause"] {
        assert!(!shown.contains(&part), "{part} is in {shown:?}");
    }
    assert_calm(&browser, &page);
}

#[test]
#[ignore = "needs Chromium"]
fn release_label_is_not_interpreted_as_markup() {
    let label = r#"</script><img src=x onerror="document.title = 'taken'">"#;
    let service = start(label, "oak");
    let balancer = Balancer::start(vec![Backend::Serves(service.address)]);
    let mut browser = Browser::start();
    let page = balancer.url();
    browser.open(&page);
    wait_for(&mut browser, "+served.innerText > 2");
    assert_eq!(text(&mut browser, "h1"), format!("timber, release {label}"));
    assert_eq!(
        text(&mut browser, "#replicas b"),
        format!("release {label}")
    );
    assert_eq!(browser.script("document.images.length"), json!(0));
    browser.script("document.getElementById('try').click()");
    wait_for(&mut browser, "response.innerText.includes('so delicious')");
    assert_calm(&browser, &page);
}

/// The other tests rely on this: the browser reports violations of the policy.
#[test]
#[ignore = "needs Chromium"]
fn browser_blocks_what_the_policy_does_not_allow() {
    let service = start("1", "oak");
    let balancer = Balancer::start(vec![Backend::Serves(service.address)]);
    let mut browser = Browser::start();
    browser.open(&balancer.url());
    wait_for(&mut browser, "+served.innerText > 2");
    pause(&mut browser);
    for (foreign, complaint) in [
        (
            "add(document.body, 'img').src = 'http://other.test/x.png'",
            "img-src data:",
        ),
        (
            "fetch('http://other.test/').catch(() => 0)",
            "connect-src 'self'",
        ),
        (
            "add(document.body, 'p').setAttribute('style', 'color: red')",
            "style-src 'sha256-",
        ),
        (
            "try { document.body.innerHTML = '' } catch {}",
            "TrustedHTML",
        ),
        (
            "try { add(document.body, 'p').setAttribute('onclick', '') } catch {}",
            "TrustedScript",
        ),
    ] {
        browser.script(&format!("{foreign}; true"));
        let begin = Instant::now();
        while !browser
            .complaints()
            .iter()
            .any(|event| event.to_string().contains(complaint))
        {
            assert!(
                begin.elapsed() < TEST_TIMEOUT,
                "{foreign} is allowed: {:?}",
                browser.complaints()
            );
            browser.script("0");
        }
    }
}
