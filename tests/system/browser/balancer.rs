//! What stands before the services: each connection goes to the next backend, as in a Swarm's ingress.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

#[derive(Clone, Copy)]
pub enum Backend {
    Serves(SocketAddr),
    /// Answers 503, as a proxy does that has nobody to pass a request to.
    Fails,
    /// Closes instead of answering.
    Drops,
    /// Neither answers nor closes.
    Stalls,
}

/// Accepts for as long as the test runs.
pub struct Balancer {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    backends: Mutex<Vec<Backend>>,
    next: AtomicUsize,
    failed: AtomicUsize,
    lost: AtomicUsize,
}

impl Balancer {
    pub fn start(backends: Vec<Backend>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (next, failed, lost) = Default::default();
        let state = Arc::new(State {
            backends: Mutex::new(backends),
            next,
            failed,
            lost,
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(stream));
            }
        });
        Balancer { address, state }
    }

    /// By a name: browsers trust plain HTTP from an address of this machine more than what a room will see.
    pub fn url(&self) -> String {
        format!("http://timber.test:{}/", self.address.port())
    }

    pub fn set(&self, backends: &[Backend]) {
        *self.state.backends.lock().unwrap() = backends.to_vec();
    }

    /// Requests that got a 503.
    pub fn failed(&self) -> usize {
        self.state.failed.load(SeqCst)
    }

    /// Requests that got nothing.
    pub fn lost(&self) -> usize {
        self.state.lost.load(SeqCst)
    }
}

impl State {
    /// Chooses when a request has come: browsers also open connections that they may need later.
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let backend = {
            let backends = self.backends.lock().unwrap();
            backends[self.next.fetch_add(1, SeqCst) % backends.len()]
        };
        match backend {
            Backend::Serves(address) => {
                let mut service = TcpStream::connect(address).ok()?;
                service.write_all(&head).ok()?;
                let (mut from, mut to) = (client.try_clone().ok()?, service.try_clone().ok()?);
                thread::spawn(move || {
                    _ = io::copy(&mut from, &mut to);
                    _ = to.shutdown(Shutdown::Write);
                });
                _ = io::copy(&mut service, &mut client);
                _ = client.shutdown(Shutdown::Both);
            }
            Backend::Fails => {
                self.failed.fetch_add(1, SeqCst);
                let answer = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                client.write_all(answer.as_bytes()).ok()?;
            }
            Backend::Drops => {
                self.lost.fetch_add(1, SeqCst);
            }
            Backend::Stalls => {
                self.lost.fetch_add(1, SeqCst);
                io::copy(&mut client, &mut io::sink()).ok()?;
            }
        }
        Some(())
    }
}
