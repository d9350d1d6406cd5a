//! Drives Chromium with its `DevTools` protocol: JSON messages, each ended by a zero byte, through two
//! pipes.

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
    // Only this name resolves.
    "--host-resolver-rules=MAP timber.test 127.0.0.1, MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
];

/// One browser at a time: on a small machine several would delay samples until the page gives up.
static ONE: Mutex<()> = Mutex::new(());

pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    /// The session of the page, empty until it exists.
    session: String,
    events: Vec<Value>,
    _profile: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts Chromium with one empty page of 1920 by 1080 pixels.
    pub fn start() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = tempfile::tempdir().unwrap();
        // Chromium reads from descriptor 3 and writes to 4. When this process ends, the pipes close
        // and Chromium exits.
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

    /// Sends a command and returns its result. Keeps the events that arrive meanwhile.
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
            .expect("Chromium does not respond")
    }

    /// Opens a page and returns once it is loaded.
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

    /// Evaluates an expression.
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

    /// Sets the preferred color scheme, `light` or `dark`.
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

    /// Saves a screenshot as tmp/NAME.png in the target directory.
    pub fn picture(&mut self, name: &str) {
        let data = self.call("Page.captureScreenshot", &json!({ "format": "png" }))["data"].clone();
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        fs::write(
            file,
            BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap(),
        )
        .unwrap();
    }

    /// Returns the events since the page was opened.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// Returns the URLs that were requested, including the page's own.
    pub fn requests(&self) -> Vec<&str> {
        let sent = self
            .events()
            .iter()
            .filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap())
            .collect()
    }

    /// Returns errors and warnings of the console, exceptions and violations of the page's policy, but
    /// not failed requests, which the page itself shows.
    pub fn complaints(&self) -> Vec<&Value> {
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            Some("Log.entryAdded") => event["params"]["entry"]["source"] != "network",
            _ => false,
        };
        self.events().iter().filter(is_complaint).collect()
    }

    /// Asserts that the page was requested once and then only `others`, without complaints.
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
        // A regular exit first, so that Chromium ends its own processes.
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
