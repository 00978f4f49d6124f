//! Links SPDK, where it is to be inside.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_SPDK_LINK_ARGS");
    let arguments = std::env::var("DEP_SPDK_LINK_ARGS").unwrap_or_default();
    for argument in arguments
        .split('\x1f')
        .filter(|argument| !argument.is_empty())
    {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
