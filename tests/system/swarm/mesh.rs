//! A stand-in for the routing mesh on kernels without IPVS, which the mesh needs: `mesh LISTEN TARGET`.
//! Like IPVS it ignores HTTP and never retries. It resolves TARGET for each connection and forwards the
//! connection to the next address. It is a program of its own, because it has to run in a container
//! next to the tasks: the engine's name server, which lists the tasks that may receive traffic,
//! responds only there.

use std::{
    env, io,
    net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs},
    thread,
};

fn main() -> io::Result<()> {
    let [_, listen, target] = env::args()
        .collect::<Vec<_>>()
        .try_into()
        .expect("mesh LISTEN TARGET");
    for (number, client) in TcpListener::bind(listen)?.incoming().enumerate() {
        let (client, target) = (client?, target.clone());
        thread::spawn(move || forward(client, &target, number));
    }
    Ok(())
}

fn forward(client: TcpStream, target: &str, number: usize) -> io::Result<()> {
    let mut tasks: Vec<_> = target.to_socket_addrs()?.collect();
    tasks.sort();
    let task = TcpStream::connect(tasks[number % tasks.len()])?;
    let (from_client, from_task) = (client.try_clone()?, task.try_clone()?);
    thread::spawn(move || copy(from_client, task));
    copy(from_task, client);
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    _ = to.set_nodelay(true);
    // A reset becomes an end of file. A client that waits for a response counts both as a loss.
    _ = io::copy(&mut from, &mut to);
    _ = to.shutdown(Shutdown::Write);
}
