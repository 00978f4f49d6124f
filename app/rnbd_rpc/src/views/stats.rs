//! The counters of paths, which have methods of their own, put to the paths.

use serde::Deserialize;
use serde_json::{Map, Value};

/// What both sides count of a path.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PathCounters {
    pub(crate) read_total_size: u64,
    pub(crate) write_total_size: u64,
    pub(crate) inflights: u64,
    pub(crate) reconnects: Reconnects,
    pub(crate) hb_latency_us: Option<f64>,
}

/// How often a path came back.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Reconnects {
    pub(crate) successful: u64,
    pub(crate) failed: u64,
}

/// Adds `stats` to each path of each of `owners`, which `key` names, from the same path of the same
/// owner in `counted`.
pub(crate) fn add_path_stats(owners: &mut Value, counted: &Value, key: &str) {
    for owner in owners.as_array_mut().into_iter().flatten() {
        let name = owner[key].clone();
        let Some(counted) = elements(counted).find(|counted| counted[key] == name) else {
            continue;
        };
        let paths = owner.get_mut("paths").and_then(Value::as_array_mut);
        for path in paths.into_iter().flatten() {
            let stats = elements(&counted["paths"]).find(|stats| is_same_path(path, stats));
            if let (Some(stats), Some(path)) = (stats, path.as_object_mut()) {
                path.insert("stats".to_owned(), Value::Object(counters(stats)));
            }
        }
    }
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The initiator numbers its paths; their names change as they are lost and come back.
fn is_same_path(one: &Value, other: &Value) -> bool {
    match (one.get("path_id"), other.get("path_id")) {
        (Some(one), Some(other)) => one == other,
        _ => one["path"] == other["path"],
    }
}

fn counters(stats: &Value) -> Map<String, Value> {
    let members = stats.as_object().into_iter().flatten();
    members
        .filter(|(key, _)| !["path", "path_id"].contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_without_numbers_are_told_apart_by_their_names() {
        let mut sessions = json!([{"sessname": "a", "paths": [{"path": "x@y"}, {"path": "x@z"}]}]);
        let counted = json!([{"sessname": "a", "paths": [{"path": "x@z", "inflights": 1}]}]);
        add_path_stats(&mut sessions, &counted, "sessname");
        assert_eq!(sessions[0]["paths"][0].get("stats"), None);
        assert_eq!(sessions[0]["paths"][1]["stats"], json!({"inflights": 1}));
    }

    #[test]
    fn each_path_gets_its_own_counters() {
        let mut controllers = json!([
            {"name": "a", "paths": [{"path": "x@y", "path_id": 0}, {"path": "x@y", "path_id": 1}]},
            {"name": "b", "paths": [{"path": "y", "path_id": 0}]},
        ]);
        let counted = json!([
            {"name": "b", "paths": [{"path": "x@y", "path_id": 0, "inflights": 3}]},
            {"name": "a", "paths": [{"path": "x@y", "path_id": 1, "inflights": 2}]},
        ]);
        add_path_stats(&mut controllers, &counted, "name");
        assert_eq!(controllers[0]["paths"][0].get("stats"), None);
        assert_eq!(controllers[0]["paths"][1]["stats"], json!({"inflights": 2}));
        assert_eq!(controllers[1]["paths"][0]["stats"], json!({"inflights": 3}));
    }
}
