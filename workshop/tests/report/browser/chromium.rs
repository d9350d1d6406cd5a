//! Chromium, driven over its debugging protocol: JSON over one web socket.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

const PATIENCE: Duration = Duration::from_mins(1);

pub struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    last_id: u64,
    /// Of the one page; empty until there is one.
    session: String,
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    /// With one empty page of 1920 by 1080.
    pub fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ])
            .args([
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .args(["--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("needs Chromium");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let address =
            lines.find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned)).unwrap();
        // It writes on, and must not wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let host = address.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(address.as_str(), stream).unwrap();
        let mut browser = Browser {
            child,
            socket,
            last_id: 0,
            session: String::new(),
            events: Vec::new(),
            _profile: profile,
        };

        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        attached["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network", "DOM", "CSS"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.size(1920, 1080);
        browser.media("light", "screen");
        browser
    }

    /// One command and its result. What happens meanwhile is kept.
    pub fn call(&mut self, method: &str, parameters: impl Into<Value>) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": parameters.into() });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(command.to_string())).unwrap();
        loop {
            let message = self.receive();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn receive(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// Returns once the page is loaded.
    pub fn open(&mut self, address: &str) {
        let begin = Instant::now();
        self.events.clear();
        self.call("Page.navigate", json!({ "url": address }));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            assert!(begin.elapsed() < PATIENCE, "{address} does not load");
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// What an expression is worth.
    pub fn script(&mut self, expression: &str) -> Value {
        let result =
            self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    fn nodes(&mut self, selector: &str) -> Vec<Value> {
        let root = self.call("DOM.getDocument", json!({ "depth": 0 }))["root"]["nodeId"].clone();
        let found = self.call("DOM.querySelectorAll", json!({ "nodeId": root, "selector": selector }));
        found["nodeIds"].as_array().unwrap().clone()
    }

    /// Without any script: of all that a selector finds.
    pub fn widths(&mut self, selector: &str) -> Vec<f64> {
        let nodes = self.nodes(selector);
        // Left and right of the first two corners; "width" would be a whole number.
        let corners = |corners: &Value| corners[2].as_f64().unwrap() - corners[0].as_f64().unwrap();
        let width =
            |node| corners(&self.call("DOM.getBoxModel", json!({ "nodeId": node }))["model"]["border"]);
        nodes.into_iter().map(width).collect()
    }

    /// Of the first that a selector finds.
    pub fn style(&mut self, selector: &str, property: &str) -> String {
        let node = self.nodes(selector).remove(0);
        let styles = self.call("CSS.getComputedStyleForNode", json!({ "nodeId": node }));
        let mut styles = styles["computedStyle"].as_array().unwrap().iter();
        styles.find(|style| style["name"] == property).unwrap()["value"].as_str().unwrap().to_owned()
    }

    pub fn click(&mut self, selector: &str) {
        let node = self.nodes(selector).remove(0);
        let corners = self.call("DOM.getBoxModel", json!({ "nodeId": node }))["model"]["border"].clone();
        let middle = |from: usize, to: usize| {
            f64::midpoint(corners[from].as_f64().unwrap(), corners[to].as_f64().unwrap())
        };
        for kind in ["mousePressed", "mouseReleased"] {
            let place = json!({ "type": kind, "x": middle(0, 2), "y": middle(1, 5), "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", place);
        }
    }

    pub fn press_space(&mut self) {
        for kind in ["keyDown", "keyUp"] {
            let key = json!({ "type": kind, "key": " ", "code": "Space", "text": " ", "windowsVirtualKeyCode": 32 });
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    /// `light` or `dark`, `screen` or `print`.
    pub fn media(&mut self, scheme: &str, kind: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "media": kind, "features": features }));
    }

    pub fn size(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Of what is in sight, as tmp/NAME.png.
    pub fn picture(&mut self, name: &str) {
        let data = self.call("Page.captureScreenshot", json!({ "format": "png" }))["data"].clone();
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        fs::write(file, BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap();
    }

    /// Addresses of all that the page asked for, itself included.
    pub fn requests(&self) -> Vec<&str> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap()).collect()
    }

    /// How many of them the page's policy kept from leaving.
    pub fn refused(&self) -> usize {
        self.events.iter().filter(|event| event["params"]["blockedReason"] == "csp").count()
    }

    /// Errors and warnings on the console, exceptions, breaches of the page's policy.
    pub fn complaints(&self) -> Vec<&Value> {
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            Some("Log.entryAdded") => event["params"]["entry"]["level"] != "verbose",
            _ => false,
        };
        self.events.iter().filter(is_complaint).collect()
    }

    pub fn assert_calm(&self, page: &str) {
        assert_eq!(self.complaints(), [&Value::Null; 0]);
        assert_eq!(self.requests(), [page]);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // In order first, so that its own processes end with it.
        let close = json!({ "id": self.last_id + 1, "method": "Browser.close" });
        _ = self.socket.send(Message::text(close.to_string()));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5)
            && self.child.try_wait().is_ok_and(|status| status.is_none())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
