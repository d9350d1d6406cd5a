//! Stands in for the routing mesh where the kernel has no IPVS, which the mesh is made of. Like IPVS it knows nothing of
//! HTTP and tries nothing twice: each connection is led to the next of the tasks that the engine names at that moment,
//! and stays there. It runs in a container beside them, because only there does the engine's name server answer.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs},
    thread,
};

/// For a service that is called `timber` and listens at port 8080, at that port.
pub fn stand_in() {
    let listener = TcpListener::bind(":::8080").unwrap();
    for (number, client) in listener.incoming().enumerate() {
        let client = client.unwrap();
        thread::spawn(move || {
            // All of them, in an order of its own; a task that is not healthy or is being stopped is not among them.
            let mut tasks: Vec<_> = ("tasks.timber", 8080).to_socket_addrs()?.collect();
            tasks.sort();
            let task = TcpStream::connect(tasks[number % tasks.len()])?;
            let (from_client, to_client) = (client.try_clone()?, client);
            let (from_task, to_task) = (task.try_clone()?, task);
            thread::spawn(move || pass_on(from_client, &to_task));
            pass_on(from_task, &to_client);
            io::Result::Ok(())
        });
    }
}

fn pass_on(mut from: TcpStream, mut to: &TcpStream) {
    _ = to.set_nodelay(true);
    _ = io::copy(&mut from, &mut to);
    _ = to.shutdown(Shutdown::Write);
}
