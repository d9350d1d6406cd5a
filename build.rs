//! Hands the target triple to the program: cargo tells it to build scripts alone.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").expect("cargo sets TARGET for build scripts");
    println!("cargo::rustc-env=BUILD_TARGET={target}");
}
