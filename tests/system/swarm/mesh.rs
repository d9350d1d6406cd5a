//! Stands in for the routing mesh where the kernel has no IPVS, which the mesh is made of: `mesh LISTEN TARGET`. Like
//! IPVS it knows nothing of HTTP and tries nothing twice: each connection is led to the next of the addresses that
//! TARGET has at that moment, and stays there. A program by itself, because it has to run in a container beside the
//! tasks: only there does the engine's name server answer, which names the tasks that may have traffic.

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
        thread::spawn(move || lead(client, &target, number));
    }
    Ok(())
}

fn lead(client: TcpStream, target: &str, number: usize) -> io::Result<()> {
    let mut tasks: Vec<_> = target.to_socket_addrs()?.collect();
    tasks.sort();
    let task = TcpStream::connect(tasks[number % tasks.len()])?;
    let (from_client, from_task) = (client.try_clone()?, task.try_clone()?);
    thread::spawn(move || pass_on(from_client, task));
    pass_on(from_task, client);
    Ok(())
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    _ = to.set_nodelay(true);
    // A reset is passed on as an end. For who waits for an answer that is a loss as well.
    _ = io::copy(&mut from, &mut to);
    _ = to.shutdown(Shutdown::Write);
}
