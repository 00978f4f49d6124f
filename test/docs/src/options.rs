//! A program's options as Markdown, from what clap knows of them.

use std::fmt::Write;

use clap::{Arg, Command};

/// Tables of all options of a command, and of its subcommands. Hidden ones are left out, and so
/// are those that `described_elsewhere` has.
#[must_use]
pub fn option_tables(command: &Command, described_elsewhere: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let own = |arg: &&Arg| {
        described_elsewhere
            .get_arguments()
            .all(|other| other != *arg)
    };
    let mut text = table(command.get_arguments().filter(own));
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let about = subcommand.get_about().map(ToString::to_string);
        let about = about.unwrap_or_default();
        line(
            &mut text,
            &format!("\n`{}`: {about}.", subcommand.get_name()),
        );
        let own = |arg: &&Arg| !arg.is_global_set() && arg.get_id() != "help";
        let options = table(subcommand.get_arguments().filter(own));
        if !options.is_empty() {
            line(&mut text, &format!("\n{}", options.trim_end()));
        }
    }
    text
}

/// Empty if there are no rows.
fn table<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
    let mut text = String::new();
    for arg in args.filter(|arg| !arg.is_hide_set()) {
        if text.is_empty() {
            line(
                &mut text,
                "| Option | Default | Meaning |\n| --- | --- | --- |",
            );
        }
        let default = match default_of(arg) {
            Some(default) => format!("`{default}`"),
            None => String::new(),
        };
        let (name, meaning) = (name_of(arg), meaning_of(arg).replace('|', "\\|"));
        line(&mut text, &format!("| {name} | {default} | {meaning} |"));
    }
    text
}

fn default_of(arg: &Arg) -> Option<String> {
    let values = arg.get_default_values();
    let takes_value = arg.get_action().takes_values() && !values.is_empty();
    takes_value.then(|| {
        let values: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
        values.join(",")
    })
}

/// All spellings, and the value's name.
fn name_of(arg: &Arg) -> String {
    let short = arg.get_short().map(|letter| format!("-{letter}"));
    let long = arg.get_long().map(|word| format!("--{word}"));
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    let aliases = aliases.into_iter().map(|word| format!("--{word}"));
    let names: Vec<_> = short.into_iter().chain(long).chain(aliases).collect();
    let names = names.join("`, `");
    let values = match arg.get_value_names() {
        Some(values) => values.join(" "),
        None => arg.get_id().to_string(),
    };
    match (arg.get_action().takes_values(), names.is_empty()) {
        (_, true) => format!("`{values}`"),
        (true, false) => format!("`{names} {values}`"),
        (false, false) => format!("`{names}`"),
    }
}

/// The help, and what the possible values mean.
fn meaning_of(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default();
    if !arg.get_action().takes_values() || arg.is_hide_possible_values_set() {
        return text.replace('\n', " ");
    }
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({help})", value.get_name()),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        write!(text, ": {}", values.join(", ")).expect("writing to a string does not fail");
    }
    text.replace('\n', " ")
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use clap::builder::PossibleValue;

    use super::*;

    fn option(name: &'static str) -> Arg {
        Arg::new(name).long(name)
    }

    #[test]
    fn an_option_is_told_with_its_spellings_default_and_values() {
        let mode = option("mode")
            .short('m')
            .default_value("busy")
            .value_parser([PossibleValue::new("busy").help("polls | on")])
            .help("How to wait");
        let text = option_tables(&Command::new("x").arg(mode), &Command::new("none"));
        let row = "| `-m`, `--mode mode` | `busy` | How to wait: `busy` (polls \\| on) |\n";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn what_is_hidden_or_told_elsewhere_is_left_out() {
        let shared = Command::new("shared").arg(option("shared"));
        let command = Command::new("x")
            .args([option("own"), option("shared"), option("secret").hide(true)])
            .subcommand(Command::new("show").about("Shows").arg(Arg::new("FILE")))
            .subcommand(Command::new("secret").hide(true));
        let text = option_tables(&command, &shared);
        assert!(
            text.contains("--own") && text.contains("`show`: Shows."),
            "{text}"
        );
        assert!(text.contains("| `FILE` |"), "{text}");
        assert!(
            !text.contains("--shared") && !text.contains("secret"),
            "{text}"
        );
    }
}
