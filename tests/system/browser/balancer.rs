//! A load balancer: each connection goes to the next backend, as in a swarm's ingress.

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
    /// Responds with 503, like a proxy without a backend.
    Fails,
    /// Closes the connection without a response.
    Drops,
    /// Keeps the connection open without a response.
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

    /// Contains a host name, because browsers trust plain HTTP from a loopback address more than from
    /// other hosts.
    pub fn url(&self) -> String {
        format!("http://timber.test:{}/", self.address.port())
    }

    pub fn set(&self, backends: &[Backend]) {
        *self.state.backends.lock().unwrap() = backends.to_vec();
    }

    /// Number of requests with a 503 response.
    pub fn failed(&self) -> usize {
        self.state.failed.load(SeqCst)
    }

    /// Number of requests without a response.
    pub fn lost(&self) -> usize {
        self.state.lost.load(SeqCst)
    }
}

impl State {
    /// Selects the backend once a request has arrived, because browsers open spare connections.
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
                let response = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
                                Content-Length: 0\r\n\r\n";
                client.write_all(response.as_bytes()).ok()?;
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
