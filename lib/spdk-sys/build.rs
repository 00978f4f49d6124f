//! Finds SPDK, checks its version and makes the bindings.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "spdk")]
    spdk::bind();
}

#[cfg(feature = "spdk")]
mod spdk {
    include!("build/spdk.rs");
}
