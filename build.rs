//! Hands the target to the program: cargo tells it to build scripts alone.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for (name, source) in [
        ("BUILD_TARGET", "TARGET"),
        ("BUILD_LIBC", "CARGO_CFG_TARGET_ENV"),
    ] {
        let value = std::env::var(source).expect("cargo sets it for build scripts");
        println!("cargo::rustc-env={name}={value}");
    }
}
