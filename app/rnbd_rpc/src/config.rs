//! `save_config` and `load_config`, which are the client's work: a configuration is a list of calls
//! (spdk-conventions.md A.5).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use rnbd_console::text::print_lines;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::python_json;
use crate::server::{Server, parse};

const STANDARD_INPUT: &str = "-";

#[derive(Debug, Deserialize, Serialize)]
struct Config {
    subsystems: Vec<Subsystem>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Subsystem {
    subsystem: String,
    /// Null, as the server has it, if there are no calls.
    config: Option<Vec<Value>>,
}

/// A subsystem, as `framework_get_subsystems` lists them: those it depends on before itself.
#[derive(Deserialize)]
struct Listed {
    subsystem: String,
    depends_on: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    method: String,
    #[serde(default)]
    params: Option<Value>,
}

/// An element of a subsystem's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Element {
    One(Call),
    Batch(Vec<Call>),
}

pub(crate) fn save_command() -> Command {
    Command::new("save_config")
        .about("Save the calls that bring the server into its present state")
        .arg(
            Arg::new("indent")
                .short('i')
                .long("indent")
                .value_name("WIDTH")
                .default_value("2")
                .allow_negative_numbers(true)
                .value_parser(value_parser!(i16).range(..=64))
                .help("Spaces for each level; less than 0 puts all on one line"),
        )
        .arg(
            Arg::new("subsystems")
                .long("subsystems")
                .value_name("NAMES")
                .value_delimiter(',')
                .help("Only these, separated by commas, and those they depend on"),
        )
        .arg(
            Arg::new("with-batches")
                .long("with-batches")
                .action(ArgAction::SetTrue)
                .help("Keep calls together that the server gives as one batch"),
        )
        .arg(
            file()
                .value_name("FILE")
                .help("Where to; standard output if absent"),
        )
}

pub(crate) fn load_command() -> Command {
    Command::new("load_config")
        .about("Make the calls that save_config saved")
        .long_about(
            "Make the calls that save_config saved.\n\n\
             Those that are only allowed before framework_start_init come first, then that call is \
             made if it is still due, then the others. Calls that are no longer allowed are left \
             out. The first failure ends it; what was done before stays.",
        )
        .arg(
            Arg::new("json-conf")
                .short('j')
                .long("json-conf")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with("file")
                .hide(true),
        )
        .arg(
            file()
                .value_name("FILE")
                .help("Where from; standard input if absent or `-`"),
        )
}

fn file() -> Arg {
    Arg::new("file").value_parser(value_parser!(PathBuf))
}

/// Saves the configuration.
///
/// # Errors
/// If a call fails, there is no such subsystem, or the file cannot be written.
pub(crate) fn save(server: &mut Server, arguments: &ArgMatches) -> Result<()> {
    let listed: Vec<Listed> = server.read("framework_get_subsystems")?;
    let wanted = wanted(&listed, arguments.get_many("subsystems"))?;
    let with_batches = arguments.get_flag("with-batches");
    let mut subsystems = Vec::new();
    for name in listed.into_iter().map(|listed| listed.subsystem) {
        if !wanted.contains(&name) {
            continue;
        }
        let params = json!({"name": name, "with_batches": with_batches});
        let config = server.call("framework_get_config", Some(params))?;
        subsystems.push(Subsystem {
            config: parse("framework_get_config", &config)?,
            subsystem: name,
        });
    }
    let indent = arguments.get_one::<i16>("indent").copied().unwrap_or(2);
    let text = text_of(&Config { subsystems }, usize::try_from(indent).ok())?;
    match arguments.get_one::<PathBuf>("file") {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
        }
        None => print_lines(&text),
    }
}

fn text_of(config: &Config, indent: Option<usize>) -> Result<String> {
    let mut text = python_json::to_string(&serde_json::to_value(config)?, indent);
    text.push('\n');
    Ok(text)
}

/// The names of the subsystems to save: all, or `named` and what they depend on.
fn wanted<'a>(
    listed: &[Listed],
    named: Option<impl Iterator<Item = &'a String>>,
) -> Result<BTreeSet<String>> {
    let Some(named) = named else {
        return Ok(listed
            .iter()
            .map(|listed| listed.subsystem.clone())
            .collect());
    };
    let mut wanted: BTreeSet<String> = named.cloned().collect();
    for name in &wanted {
        if listed.iter().all(|listed| listed.subsystem != *name) {
            let known: Vec<&str> = listed.iter().map(|l| l.subsystem.as_str()).collect();
            bail!(
                "there is no subsystem {name}; there are {}",
                known.join(", ")
            );
        }
    }
    // What a subsystem depends on stands before it.
    for subsystem in listed.iter().rev() {
        if wanted.contains(&subsystem.subsystem) {
            wanted.extend(subsystem.depends_on.iter().cloned());
        }
    }
    Ok(wanted)
}

/// Makes the calls of a configuration.
///
/// # Errors
/// If it cannot be read or has a method that the server does not know, and then no call was made;
/// or if a call fails.
pub(crate) fn load(server: &mut Server, arguments: &ArgMatches) -> Result<()> {
    let path = arguments
        .get_one::<PathBuf>("json-conf")
        .or_else(|| arguments.get_one("file"));
    let path = path
        .map(PathBuf::as_path)
        .filter(|path| *path != Path::new(STANDARD_INPUT));
    let mut elements = read(path)?;
    check_known(server, &elements)?;
    loop {
        let allowed = methods(server, true)?;
        let before = elements.len();
        elements = call_allowed(server, elements, &allowed)?;
        if allowed.contains("framework_start_init") {
            server.call("framework_start_init", None)?;
        } else if elements.is_empty() || elements.len() == before {
            break;
        }
    }
    warn_of_rest(&elements);
    Ok(())
}

/// The elements of all subsystems, in their order.
fn read(path: Option<&Path>) -> Result<Vec<Element>> {
    let (name, text) = match path {
        Some(path) => (path.display().to_string(), fs::read_to_string(path)),
        None => ("standard input".to_owned(), io::read_to_string(io::stdin())),
    };
    let text = text.with_context(|| format!("{name} cannot be read"))?;
    elements(&text).with_context(|| format!("{name} is no configuration"))
}

fn elements(text: &str) -> Result<Vec<Element>> {
    let config: Config = serde_json::from_str(text)?;
    let mut elements = Vec::new();
    for subsystem in config.subsystems {
        for element in subsystem.config.into_iter().flatten() {
            let call = Element::deserialize(&element).with_context(|| {
                format!(
                    "subsystem {}: {element} is neither a call with `method` and `params` nor an \
                     array of them",
                    subsystem.subsystem
                )
            })?;
            elements.push(call);
        }
    }
    Ok(elements)
}

fn methods(server: &mut Server, current: bool) -> Result<BTreeSet<String>> {
    let params = json!({"current": current, "include_aliases": false});
    let answer = server.call("rpc_get_methods", Some(params))?;
    parse("rpc_get_methods", &answer)
}

fn check_known(server: &mut Server, elements: &[Element]) -> Result<()> {
    let known = methods(server, false)?;
    let mut calls = elements.iter().flat_map(Element::calls);
    match calls.find(|call| !known.contains(&call.method)) {
        None => Ok(()),
        Some(call) => bail!(
            "the configuration calls {}, which the server does not have; nothing was loaded",
            call.method
        ),
    }
}

/// Makes the calls that are allowed and returns the elements with others.
fn call_allowed(
    server: &mut Server,
    elements: Vec<Element>,
    allowed: &BTreeSet<String>,
) -> Result<Vec<Element>> {
    let mut rest = Vec::new();
    for element in elements {
        let mut calls = element.calls().iter();
        if calls.all(|call| allowed.contains(&call.method)) {
            for call in element.calls() {
                server.call(&call.method, call.params())?;
            }
        } else {
            rest.push(element);
        }
    }
    Ok(rest)
}

fn warn_of_rest(elements: &[Element]) {
    let methods: BTreeSet<&str> = elements
        .iter()
        .flat_map(Element::calls)
        .map(|call| call.method.as_str())
        .collect();
    if !methods.is_empty() {
        let methods: Vec<&str> = methods.into_iter().collect();
        eprintln!(
            "rnbd_rpc: left out, as it may only be called before framework_start_init: {}",
            methods.join(", ")
        );
    }
}

impl Element {
    fn calls(&self) -> &[Call] {
        match self {
            Self::One(call) => std::slice::from_ref(call),
            Self::Batch(calls) => calls,
        }
    }
}

impl Call {
    /// Methods without parameters refuse even an empty object.
    fn params(&self) -> Option<Value> {
        let is_empty = |params: &Value| params.as_object().is_some_and(serde_json::Map::is_empty);
        self.params.clone().filter(|params| !is_empty(params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, depends_on: &[&str]) -> Listed {
        Listed {
            subsystem: name.to_owned(),
            depends_on: depends_on.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn a_subsystem_brings_all_that_it_depends_on() {
        let all = [
            listed("bdev", &[]),
            listed("rtrs", &["bdev"]),
            listed("rnbd", &["rtrs"]),
            listed("nbd", &["bdev"]),
        ];
        let named = ["rnbd".to_owned()];
        let wanted = wanted(&all, Some(named.iter())).unwrap();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        assert_eq!(wanted, ["bdev", "rnbd", "rtrs"]);
    }

    #[test]
    fn an_unknown_subsystem_is_named() {
        let named = ["nvmf".to_owned()];
        let error = wanted(&[listed("bdev", &[])], Some(named.iter())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no subsystem nvmf; there are bdev"
        );
    }

    #[test]
    fn batches_and_empty_subsystems_are_read() {
        let text = r#"{"subsystems": [{"subsystem": "a", "config": null},
            {"subsystem": "b", "config": [{"method": "m"}, [], [{"method": "n", "params": {}}]]}]}"#;
        let elements = elements(text).unwrap();
        let calls: Vec<&Call> = elements.iter().flat_map(Element::calls).collect();
        let methods: Vec<&str> = calls.iter().map(|call| call.method.as_str()).collect();
        assert_eq!(methods, ["m", "n"]);
        assert_eq!(calls[1].params(), None);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for element in ["1", r#"{"params": {}}"#, r#"{"method": "m", "parms": {}}"#] {
            let text =
                format!(r#"{{"subsystems": [{{"subsystem": "a", "config": [{element}]}}]}}"#);
            let error = format!("{:#}", elements(&text).unwrap_err());
            assert!(error.starts_with("subsystem a: "), "{error}");
        }
    }
}
