//! Whether `docs/metrics.md` says what the methods report.

use std::collections::{BTreeMap, BTreeSet};

use rnbd_rpc::Schema;
use serde_json::{Value, json};

use super::Fixture;

const DOCUMENT: &str = include_str!("../../../../docs/metrics.md");

/// The members described in each method's table: what is in backticks in its first column.
fn described() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let sections = DOCUMENT.split("\n## ").skip(1);
    let members = |section: &'static str| {
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let first_columns = rows.filter_map(|row| row.split(" | ").next());
        first_columns
            .flat_map(|column| column.split(", "))
            .map(|member| member.trim_matches('`'))
            .collect()
    };
    sections
        .filter_map(|section| Some((section.lines().next()?, members(section))))
        .collect()
}

/// The paths of all members that are no object or array with something in it.
fn collect_members(value: &Value, path: &str, members: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, member) in object {
                let separator = if path.is_empty() { "" } else { "." };
                collect_members(member, &format!("{path}{separator}{name}"), members);
            }
        }
        Value::Array(elements) if elements.iter().any(|one| one.is_object()) => {
            for element in elements {
                collect_members(element, &format!("{path}[]"), members);
            }
        }
        _ => {
            members.insert(path.to_owned());
        }
    }
}

/// `a.*` describes all members of `a`; what was empty when it was reported may be described in
/// more detail.
fn describes(description: &str, member: &str) -> bool {
    let any_name = description.strip_suffix(".*");
    let is_inside = |path: &str, outer: &str| {
        path.strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with("[]"))
    };
    any_name.is_some_and(|stem| is_inside(member, stem)) || is_inside(description, member)
}

/// A program that is connected to itself, with an NBD export.
fn connected_program() -> Fixture {
    let fixture = Fixture::running();
    fixture.connect();
    let export = json!({"bdev_name": "R0", "address": "127.0.0.1:0"});
    fixture.call("nbd_start_export", export);
    let sampling = json!({"name": "R0", "period": 1_000_000});
    fixture.call("bdev_set_qd_sampling_period", sampling);
    fixture
}

/// What a method answers. RDMA devices need not be there to be described, but support for them.
fn answer(fixture: &Fixture, method: &str) -> Option<Value> {
    match method {
        "rdma_get_devices" => crate::rdma::example(),
        method => Some(fixture.ask(method)),
    }
}

#[test]
fn every_method_that_reports_counters_is_described() {
    let described = described();
    let counts = |name: &&String| {
        let (_, what) = name.rsplit_once("_get_").unwrap_or_default();
        what.ends_with("stats") || what.ends_with("iostat") || what.ends_with("statistics")
    };
    let names = Schema::builtin().methods.iter().map(|method| &method.name);
    let missing: Vec<_> = names
        .filter(counts)
        .filter(|name| !described.contains_key(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_is_described_is_what_is_reported() {
    let fixture = connected_program();
    let described = described();
    assert!(!described.is_empty());
    for (method, descriptions) in described {
        let Some(answer) = answer(&fixture, method) else {
            continue;
        };
        let mut members = BTreeSet::new();
        collect_members(&answer, "", &mut members);
        for member in &members {
            let known = descriptions.iter().any(|text| describes(text, member));
            assert!(known, "{method}: {member} is not described");
        }
        for description in descriptions {
            let known = members.iter().any(|member| describes(description, member));
            assert!(known, "{method}: {description} is not reported");
        }
    }
}
