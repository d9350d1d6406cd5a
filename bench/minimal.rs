//! The smallest server that hyper and tokio make: one thread, one response. bench/run compares its
//! start with that of timber: ./minimal ADDRESS

use std::convert::Infallible;

use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let address = std::env::args().nth(1).expect("usage: minimal ADDRESS");
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let respond = |_| async {
                let body = Bytes::from_static(br#"{"timber": "so delicious"}"#);
                Ok::<_, Infallible>(Response::new(Full::new(body)))
            };
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond));
            tokio::spawn(connection);
        }
    })
}
