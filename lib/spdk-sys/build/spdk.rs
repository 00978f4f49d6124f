use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Versions whose contracts this repository was written and tested against, as (major, minor).
/// Every release may change the layout of structures and the rules of calls.
const SUPPORTED: &[(u32, u32)] = &[(26, 5)];

/// What a program is linked with that has SPDK inside: the application framework and every bdev
/// module that the installation has.
const LINKED: &[&str] = &[
    "spdk_event",
    "spdk_event_bdev",
    "spdk_event_accel",
    "spdk_event_sock",
    "spdk_event_scheduler",
    "spdk_event_keyring",
    "spdk_env_dpdk",
    "spdk_env_dpdk_rpc",
    "spdk_bdev_modules",
    "spdk_keyring_modules",
    "spdk_scheduler_modules",
];

/// The functions and constants that `lib/spdk` uses.
const FUNCTIONS: &[&str] = &[
    "spdk_add_subsystem",
    "spdk_add_subsystem_depend",
    "spdk_app_.*",
    "spdk_bdev_.*",
    "spdk_cpuset_.*",
    "spdk_env_get_.*",
    "spdk_for_each_channel.*",
    "spdk_get_.*",
    "spdk_io_.*",
    "spdk_json_write_.*",
    "spdk_jsonrpc_.*",
    "spdk_log",
    "spdk_log_get_print_level",
    "spdk_mem_.*",
    "spdk_notify_.*",
    "spdk_poller_.*",
    "spdk_put_io_channel",
    "spdk_rpc_register_method",
    "spdk_subsystem_.*_next",
    "spdk_thread_.*",
];
const VARIABLES: &[&str] = &["SPDK_.*"];
/// Structures that Rust cannot lay out (packed with aligned members) or that nobody looks into.
const OPAQUE: &[&str] = &[
    "spdk_nvme_.*",
    "spdk_bdev_nvme_cdw1.*",
    "spdk_bdev_ext_io_opts",
    "spdk_bdev_io_nvme_passthru_params",
];

pub(crate) fn bind() {
    for variable in ["SPDK_DIR", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=wrapper.h");
    println!("cargo:rerun-if-changed=build/spdk.rs");
    let spdk = Installation::find().unwrap_or_else(|reason| fail(&reason));
    spdk.check_version().unwrap_or_else(|reason| fail(&reason));
    spdk.make_bindings();
    println!("cargo:link_args={}", spdk.link_args().join("\x1f"));
}

/// Ends the build with a sentence instead of a backtrace.
fn fail(reason: &str) -> ! {
    eprintln!("error: {reason}\nSee vendor/spdk/README.md for how SPDK is found.");
    std::process::exit(1);
}

struct Installation {
    /// For pkg-config, before its own places.
    pkg_config_path: Option<PathBuf>,
    include: Vec<String>,
}

impl Installation {
    /// `$SPDK_DIR`, else `vendor/spdk`, else what pkg-config finds by itself.
    fn find() -> Result<Self, String> {
        let vendor = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vendor/spdk");
        let pkg_config_path = match env::var_os("SPDK_DIR") {
            Some(dir) => Some(pkg_config_dir(Path::new(&dir)).ok_or_else(|| {
                format!("SPDK_DIR={} has no lib/pkgconfig/spdk_bdev.pc", dir.display())
            })?),
            None => pkg_config_dir(&vendor),
        };
        let mut found = Self {
            pkg_config_path,
            include: Vec::new(),
        };
        let cflags = found.pkg_config(&["--cflags", "spdk_bdev", "spdk_event"])?;
        found.include = cflags
            .split_whitespace()
            .filter(|flag| flag.starts_with("-I"))
            .map(str::to_owned)
            .collect();
        Ok(found)
    }

    fn pkg_config(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("pkg-config");
        command.args(arguments);
        if let Some(path) = &self.pkg_config_path {
            let others = env::var_os("PKG_CONFIG_PATH").unwrap_or_default();
            let all = [path.clone().into_os_string(), others].join(OsStr::new(":"));
            command.env("PKG_CONFIG_PATH", all);
        }
        let output = command
            .output()
            .map_err(|error| format!("pkg-config cannot be run: {error}"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("SPDK was not found: {}", text.trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn check_version(&self) -> Result<(), String> {
        let header = self
            .include_dirs()
            .map(|dir| dir.join("spdk/version.h"))
            .find(|path| path.exists())
            .ok_or("SPDK's spdk/version.h was not found")?;
        println!("cargo:rerun-if-changed={}", header.display());
        let text = std::fs::read_to_string(&header)
            .map_err(|error| format!("{}: {error}", header.display()))?;
        let number = |name: &str| define(&text, name).ok_or(format!("no {name} in {}", header.display()));
        let found = (number("SPDK_VERSION_MAJOR")?, number("SPDK_VERSION_MINOR")?);
        if SUPPORTED.contains(&found) {
            return Ok(());
        }
        let supported: Vec<_> = SUPPORTED.iter().map(|&version| show(version)).collect();
        Err(format!(
            "SPDK {} was found ({}), but only {} is supported",
            show(found),
            header.display(),
            supported.join(", "),
        ))
    }

    fn include_dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let given = self.include.iter().map(|flag| PathBuf::from(&flag[2..]));
        // pkg-config leaves out the directories that compilers search anyway.
        given.chain(["/usr/include", "/usr/local/include"].map(PathBuf::from))
    }

    fn make_bindings(&self) {
        let mut builder = bindgen::Builder::default()
            .header("wrapper.h")
            .clang_args(&self.include)
            .default_enum_style(bindgen::EnumVariation::ModuleConsts)
            .derive_debug(false)
            .generate_comments(false)
            .layout_tests(true)
            .prepend_enum_name(false);
        for function in FUNCTIONS {
            builder = builder.allowlist_function(function);
        }
        for variable in VARIABLES {
            builder = builder.allowlist_var(variable);
        }
        for opaque in OPAQUE {
            builder = builder.opaque_type(opaque);
        }
        let bindings = builder
            .generate()
            .unwrap_or_else(|error| fail(&format!("bindings to SPDK cannot be made: {error}")));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        let written = bindings.write_to_file(out.join("bindings.rs"));
        written.unwrap_or_else(|error| fail(&format!("bindings cannot be written: {error}")));
    }

    /// Arguments for the linker of a program that has SPDK inside. Its libraries register
    /// themselves by constructors, so all of each is taken.
    fn link_args(&self) -> Vec<String> {
        let libs = self.words(&[&["--libs"], LINKED].concat());
        let system = self.words(&["--libs", "--static", "spdk_syslibs"]);
        // Only where DPDK is not in SPDK's own folder or one that the linker knows.
        let dpdk = self.pkg_config(&["--libs-only-L", "libdpdk"]).unwrap_or_default();
        let dpdk = dpdk.split_whitespace().map(str::to_owned);
        let dirs: Vec<String> = libs
            .iter()
            .filter(|flag| flag.starts_with("-L"))
            .cloned()
            .chain(dpdk)
            .collect();
        let is_shared = |dir: &String| Path::new(&dir[2..]).join("libspdk_bdev.so").exists();
        let mut all = dirs.clone();
        if dirs.iter().any(is_shared) {
            let others = system.iter().filter(|flag| flag.starts_with("-L"));
            let found_at_run = dirs.iter().chain(others);
            all.extend(found_at_run.map(|dir| format!("-Wl,-rpath,{}", &dir[2..])));
            all.push("-Wl,--no-as-needed".into());
            all.push("-Wl,--allow-shlib-undefined".into());
            // SPDK's libraries do not name all that they use; programs do. Nothing refers to DPDK's
            // drivers, which are found when they have registered themselves.
            all.extend(libs.into_iter().filter(|flag| flag != "-Wl,--as-needed"));
            all.extend(ring_driver(&dirs));
            all.extend(system);
            return all;
        }
        all.push("-Wl,--whole-archive".into());
        all.push("-Wl,-Bstatic".into());
        all.extend(libs);
        all.extend(["-Wl,-Bdynamic".into(), "-Wl,--no-whole-archive".into()]);
        all.extend(system);
        all
    }

    fn words(&self, arguments: &[&str]) -> Vec<String> {
        let text = self.pkg_config(arguments).unwrap_or_else(|reason| fail(&reason));
        text.split_whitespace().map(str::to_owned).collect()
    }
}

/// The driver of DPDK's that SPDK's pools of memory need, if it is a shared library there.
fn ring_driver(dirs: &[String]) -> Option<String> {
    let mut folders = dirs.iter().map(|dir| Path::new(&dir[2..]));
    let is_there = folders.any(|dir| dir.join("librte_mempool_ring.so").exists());
    is_there.then(|| "-lrte_mempool_ring".to_owned())
}

/// Where pkg-config files are below an installation's prefix or a built source tree.
fn pkg_config_dir(root: &Path) -> Option<PathBuf> {
    ["lib/pkgconfig", "lib64/pkgconfig", "build/lib/pkgconfig"]
        .iter()
        .map(|dir| root.join(dir))
        .find(|dir| dir.join("spdk_bdev.pc").exists())
}

/// The number of a `#define`.
fn define(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| {
        let is_it = words.next() == Some("#define") && words.next() == Some(name);
        is_it.then(|| words.next()?.parse().ok())?
    })
}

fn show((major, minor): (u32, u32)) -> String {
    format!("v{major}.{minor:02}")
}
