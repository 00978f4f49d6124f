use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::version::check_same;

/// What the engine works with; what these contain comes along.
const TYPES: &[&str] = &[
    "fio_ddir",
    "fio_file",
    "fio_filetype",
    "fio_file_flags",
    "fio_ioengine_flags",
    "fio_opt_type",
    "fio_option",
    "fio_q_status",
    "io_u",
    "ioengine_ops",
    "opt_category",
    "opt_category_group",
    "td_ddir",
    "thread_data",
    "thread_segment",
    "value_pair",
];
/// Laid out in a way that Rust has no words for, and nobody looks into them.
const OPAQUE: &[&str] = &["thread_stat"];
const VARIABLES: &[&str] = &["FIO_IOOPS_VERSION", "JOBS_PER_SEG", "FIO_OPT_.*", "FIO_.*IO.*"];

pub(crate) fn bind() {
    for variable in ["FIO", "FIO_DIR"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for file in ["wrapper.h", "build/fio.rs", "build/version.rs"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let source = source().unwrap_or_else(|reason| fail(&reason));
    let version = version_of(&source).unwrap_or_else(|reason| fail(&reason));
    check_installed(&source, &version).unwrap_or_else(|reason| fail(&reason));
    make_bindings(&source);
    println!("cargo:rustc-env=FIO_VERSION={version}");
    // fio unloads an engine with the job that had it; its threads would lose their code.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

/// Ends the build with a sentence instead of a backtrace.
fn fail(reason: &str) -> ! {
    eprintln!("error: {reason}\nSee docs/fio.md for how fio's source is found.");
    std::process::exit(1);
}

/// `$FIO_DIR`, else where `scripts/build_fio_engine.sh` puts it.
fn source() -> Result<PathBuf, String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/fio/source");
    let dir = env::var_os("FIO_DIR").map_or(own, PathBuf::from);
    for file in ["fio.h", "config-host.h", "FIO-VERSION-FILE"] {
        let path = dir.join(file);
        if !path.exists() {
            return Err(format!(
                "{} has no {file}: it has to be fio's source, after ./configure and \
                 ./FIO-VERSION-GEN (set FIO_DIR, or run scripts/build_fio_engine.sh)",
                dir.display()
            ));
        }
        println!("cargo:rerun-if-changed={}", path.display());
    }
    Ok(dir)
}

/// As in `FIO_VERSION = fio-3.33`.
fn version_of(source: &Path) -> Result<String, String> {
    let path = source.join("FIO-VERSION-FILE");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    text.trim()
        .strip_prefix("FIO_VERSION = ")
        .map(str::to_owned)
        .ok_or_else(|| format!("{} names no version", path.display()))
}

/// The fio that is installed, `$FIO` or that in the PATH, is the one that the source is of. Where
/// there is none, the engine finds out when it is loaded.
fn check_installed(source: &Path, version: &str) -> Result<(), String> {
    let program = env::var_os("FIO").unwrap_or_else(|| "fio".into());
    let Ok(output) = Command::new(&program).arg("--version").output() else {
        return Ok(());
    };
    let installed = String::from_utf8_lossy(&output.stdout);
    let (source, program) = (source.display(), Path::new(&program).display());
    check_same(
        (&format!("the source in {source} is of"), version),
        (&format!("the program {program} is"), installed.trim()),
    )
}

fn make_bindings(source: &Path) {
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_arg(format!("-I{}", source.display()))
        .clang_args(["-include", "config-host.h", "-D_GNU_SOURCE"])
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .derive_debug(false)
        .derive_default(true)
        .generate_comments(false)
        .layout_tests(true)
        .prepend_enum_name(false);
    for kind in TYPES {
        builder = builder.allowlist_type(kind);
    }
    for variable in VARIABLES {
        builder = builder.allowlist_var(variable);
    }
    for opaque in OPAQUE {
        builder = builder.opaque_type(opaque);
    }
    let bindings = builder
        .generate()
        .unwrap_or_else(|error| fail(&format!("bindings to fio cannot be made: {error}")));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let written = bindings.write_to_file(out.join("bindings.rs"));
    written.unwrap_or_else(|error| fail(&format!("bindings cannot be written: {error}")));
}
