//! Finds fio's source, compares it with the fio that is installed, and makes the bindings.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "fio")]
    fio::bind();
}

#[cfg(feature = "fio")]
mod fio {
    include!("build/fio.rs");
}

#[cfg(feature = "fio")]
mod version {
    include!("build/version.rs");
}
