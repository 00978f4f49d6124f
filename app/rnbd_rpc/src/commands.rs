//! The commands, and which of them runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use rnbd_console::text::print_lines;
use rnbd_console::{DEFAULT_SOCKET, SOCKET_VARIABLE, seconds};
use rnbd_rpc::{Method, Schema};
use serde_json::{Value, json};

use crate::method::plain;
use crate::params::{json_text, method_params};
use crate::print::{Form, print_result};
use crate::server::Server;
use crate::table::Table;
use crate::views::{VIEWS, View};
use crate::{config, method};

const SUGGESTIONS: usize = 3;
const CONNECTION: &str = "Connection and output";

const AFTER_HELP: &str = "\
Every RPC method is a command too: `rnbd_rpc methods` lists them, and `rnbd_rpc METHOD --help`
explains one. For example:

  rnbd_rpc bdev_malloc_create --num-blocks 131072 --block-size 512 --name Malloc0
  rnbd_rpc -s /run/rnbd.sock exports

Exit status: 0 for success, 1 if the call failed, 2 for wrong use.";

/// Parses the arguments and does what they say.
///
/// # Errors
/// A [`clap::Error`] for wrong use and for help; any other for a call that failed.
pub(crate) fn run(
    schema: &'static Schema,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<()> {
    let mut root = root(schema);
    let matches = root
        .try_get_matches_from_mut(arguments)
        .map_err(with_fewer_suggestions)?;
    let form = Form::of(matches.get_flag("json"));
    let Some((name, arguments)) = matches.subcommand() else {
        return Ok(());
    };
    if name == "methods" {
        return list_methods(schema, arguments, form);
    }
    if let Some(method) = schema.method(name) {
        let params = method_params(schema, method, arguments)
            .map_err(|text| usage_error(&mut root, name, &text))?;
        return call(&mut connect(&matches)?, name, params, form);
    }
    let mut server = connect(&matches)?;
    match name {
        "call" => call_raw(&mut server, arguments, form),
        "save_config" => config::save(&mut server, arguments),
        "load_config" => config::load(&mut server, arguments),
        _ => show_view(&mut server, name, arguments, form),
    }
}

fn connect(matches: &ArgMatches) -> Result<Server> {
    let socket = matches
        .get_one::<PathBuf>("socket")
        .cloned()
        .or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let timeout = matches.get_one::<Duration>("rpc-timeout").copied();
    Server::connect(&socket, timeout.filter(|timeout| !timeout.is_zero()))
}

fn call(server: &mut Server, method: &str, params: Option<Value>, form: Form) -> Result<()> {
    let result = server.call(method, params)?;
    print_result(&result, form)
}

fn call_raw(server: &mut Server, arguments: &ArgMatches, form: Form) -> Result<()> {
    let method = arguments
        .get_one::<String>("method")
        .map_or("", String::as_str);
    let params = arguments.get_one::<Value>("params").cloned();
    call(server, method, params, form)
}

fn show_view(server: &mut Server, name: &str, arguments: &ArgMatches, form: Form) -> Result<()> {
    let Some(view) = VIEWS.iter().find(|view| view.name == name) else {
        return Ok(());
    };
    let report = (view.run)(server, arguments)?;
    match form {
        Form::Json => print_result(&report.json, form),
        Form::Person if report.table.is_empty() => print_lines(view.when_empty),
        Form::Person => print_lines(&report.table.to_string()),
    }
}

fn list_methods(schema: &Schema, arguments: &ArgMatches, form: Form) -> Result<()> {
    let pattern = arguments.get_one::<String>("pattern");
    let wanted = |method: &&Method| {
        !method.private && pattern.is_none_or(|pattern| method.name.contains(pattern.as_str()))
    };
    let methods: Vec<&Method> = schema.methods.iter().filter(wanted).collect();
    if form == Form::Json {
        let describe =
            |method: &&Method| json!({"name": method.name, "description": method.description});
        return print_result(&methods.iter().map(describe).collect(), form);
    }
    let mut table = Table::new(&["METHOD", "DOES"]);
    for method in methods {
        table.row([
            method.name.clone(),
            plain(&first_sentence(&method.description)),
        ]);
    }
    print_lines(&table.to_string())
}

fn first_sentence(text: &str) -> String {
    let sentence = text.split_once(". ").map_or(text, |(first, _)| first);
    sentence.trim().trim_end_matches('.').to_owned()
}

/// So many names are alike that only the likeliest help. They come last.
fn with_fewer_suggestions(mut error: clap::Error) -> clap::Error {
    let suggested = error.get(ContextKind::SuggestedSubcommand);
    if let Some(ContextValue::Strings(names)) = suggested {
        let likeliest = names.iter().rev().take(SUGGESTIONS).cloned().collect();
        error.insert(
            ContextKind::SuggestedSubcommand,
            ContextValue::Strings(likeliest),
        );
    }
    error
}

/// Wrong use of the command `name`, with its usage line.
fn usage_error(root: &mut Command, name: &str, text: &str) -> clap::Error {
    let kind = ErrorKind::ValueValidation;
    match root.find_subcommand_mut(name) {
        Some(command) => command.error(kind, text),
        None => root.error(kind, text),
    }
}

fn root(schema: &'static Schema) -> Command {
    let methods = schema.methods.iter();
    Command::new("rnbd_rpc")
        .about("Command line client of the RPC server of rnbd_tgt and its like")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand_value_name("COMMAND")
        .max_term_width(100)
        .after_help(AFTER_HELP)
        .args([socket(), timeout(), json_flag()])
        .subcommands(VIEWS.iter().map(view_command))
        .subcommands([
            config::save_command(),
            config::load_command(),
            methods_command(),
            call_command(),
        ])
        .subcommands(methods.map(|method| method::command(schema, method)))
}

fn socket() -> Arg {
    Arg::new("socket")
        .short('s')
        .long("socket")
        .value_name("SOCKET")
        .global(true)
        .help_heading(CONNECTION)
        .value_parser(value_parser!(PathBuf))
        .help(format!(
            "The server's socket [default: ${SOCKET_VARIABLE}, or {DEFAULT_SOCKET}]"
        ))
}

fn timeout() -> Arg {
    Arg::new("rpc-timeout")
        .short('t')
        .long("rpc-timeout")
        .value_name("SECONDS")
        .global(true)
        .help_heading(CONNECTION)
        .default_value("60")
        .value_parser(seconds)
        .help("How long to wait for an answer; 0 for as long as it takes")
}

fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .global(true)
        .help_heading(CONNECTION)
        .action(ArgAction::SetTrue)
        .help("Print the answer as JSON on one line, for scripts")
}

fn view_command(view: &View) -> Command {
    (view.arguments)(Command::new(view.name).about(view.about))
}

fn methods_command() -> Command {
    Command::new("methods").about("List the RPC methods").arg(
        Arg::new("pattern")
            .value_name("PATTERN")
            .help("Only those with this in their names"),
    )
}

fn call_command() -> Command {
    Command::new("call")
        .about("Call any method, with parameters as they are")
        .arg(
            Arg::new("method")
                .value_name("METHOD")
                .required(true)
                .help("The method's name; it need not be one that this program knows"),
        )
        .arg(
            Arg::new("params")
                .value_name("PARAMS")
                .value_parser(json_text)
                .help("The parameters as JSON; `-` reads them from standard input"),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_commands_or_options_clash() {
        root(Schema::builtin()).debug_assert();
    }

    #[test]
    fn the_documentation_lists_all_options() {
        let tables = rnbd_docs::option_tables(&root(Schema::builtin()), &Command::new("none"));
        rnbd_docs::assert_generated("docs/options.md", "rnbd_rpc", &tables);
    }

    #[test]
    fn every_method_is_a_command() {
        let root = root(Schema::builtin());
        for method in &Schema::builtin().methods {
            assert!(
                root.find_subcommand(&method.name).is_some(),
                "{}",
                method.name
            );
        }
    }

    #[test]
    fn a_description_is_cut_to_its_first_sentence() {
        assert_eq!(first_sentence("Does it. The rest."), "Does it");
        assert_eq!(first_sentence("Does it."), "Does it");
    }
}
