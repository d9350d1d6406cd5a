//! Chromium, driven over its `DevTools` protocol: JSON, each message ended by a zero byte, through two pipes.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(1);

const FLAGS: [&str; 14] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    // No name but this one leads anywhere.
    "--host-resolver-rules=MAP timber.test 127.0.0.1, MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
];

/// The page gives up on samples that take long. Several browsers on a small machine would make them so.
static ONE: Mutex<()> = Mutex::new(());

pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    /// Of the one page; empty until there is one.
    session: String,
    events: Vec<Value>,
    _profile: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Browser {
    /// With one empty page of 1920 by 1080.
    pub fn start() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = tempfile::tempdir().unwrap();
        // It reads from descriptor 3 and writes to 4. When this process ends, however it does, so do the pipes, and then
        // the browser.
        let mut child = Command::new("/bin/sh")
            .args([
                "-c",
                "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null",
                "sh",
            ])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            let parts = output.split(0).map_while(Result::ok);
            parts
                .map(|part| serde_json::from_slice(&part).unwrap())
                .try_for_each(|value| sender.send(value))
        });
        let (last_id, session, events) = Default::default();
        let mut browser = Browser {
            child,
            commands,
            messages,
            last_id,
            session,
            events,
            _profile: profile,
            _one: one,
        };

        let target =
            browser.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"]
                .clone();
        let attached = browser.call(
            "Target.attachToTarget",
            &json!({ "targetId": target, "flatten": true }),
        );
        attached["sessionId"]
            .as_str()
            .unwrap()
            .clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser.size(1920, 1080);
        browser.media("light");
        browser
    }

    fn send(&mut self, method: &str, parameters: &Value) -> std::io::Result<()> {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes())
    }

    /// One command and its result. What happens meanwhile is kept.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.send(method, parameters)
            .expect("this test needs Chromium");
        loop {
            let message = self.receive();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn receive(&self) -> Value {
        self.messages
            .recv_timeout(PATIENCE)
            .expect("this test needs Chromium, and it is silent")
    }

    /// Returns once the page is loaded.
    pub fn open(&mut self, address: &str) {
        let begin = Instant::now();
        self.events.clear();
        self.call("Page.navigate", &json!({ "url": address }));
        while !self
            .events
            .iter()
            .any(|event| event["method"] == "Page.loadEventFired")
        {
            assert!(begin.elapsed() < PATIENCE, "{address} does not load");
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// What an expression is worth.
    pub fn script(&mut self, expression: &str) -> Value {
        let result = self.call(
            "Runtime.evaluate",
            &json!({ "expression": expression, "returnByValue": true }),
        );
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// `light` or `dark`.
    pub fn media(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    pub fn size(&mut self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Of what is in sight, as tmp/NAME.png.
    pub fn picture(&mut self, name: &str) {
        let data = self.call("Page.captureScreenshot", &json!({ "format": "png" }))["data"].clone();
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        fs::write(
            file,
            BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap(),
        )
        .unwrap();
    }

    /// What the browser has told since the page was opened.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// Addresses of all that the page asked for, itself included.
    pub fn requests(&self) -> Vec<&str> {
        let sent = self
            .events()
            .iter()
            .filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap())
            .collect()
    }

    /// Errors and warnings on the console, exceptions, breaches of the page's policy. That a request failed is none:
    /// the page is there to show it.
    pub fn complaints(&self) -> Vec<&Value> {
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            Some("Log.entryAdded") => event["params"]["entry"]["source"] != "network",
            _ => false,
        };
        self.events().iter().filter(is_complaint).collect()
    }

    /// The page was asked for once, from then on nothing but these addresses, and there was nothing to complain of.
    pub fn assert_calm(&self, page: &str, others: &[&str]) {
        assert_eq!(self.complaints(), [&Value::Null; 0]);
        let requests = self.requests();
        let (first, rest) = requests.split_first().unwrap();
        assert!(
            *first == page && rest.iter().all(|address| others.contains(address)),
            "{requests:?}"
        );
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // In order first, so that its own processes end with it.
        self.session.clear();
        _ = self.send("Browser.close", &json!({}));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5)
            && self.child.try_wait().is_ok_and(|status| status.is_none())
        {
            thread::sleep(Duration::from_millis(20));
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
