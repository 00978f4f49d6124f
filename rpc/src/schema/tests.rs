use serde_json::json;

use super::*;
use crate::RpcError;

const SMALL: &str = r"
enums:
- name: colour
  fields:
  - name: Red
  - name: Green
objects:
- name: point
  fields:
  - {name: x, type: uint8, required: true, description: Across.}
  - {name: y, type: uint8, default: 7, description: Up.}
arrays:
- {name: points, item_type: object, class: point, max_count: 2}
methods:
- name: paint
  description: Paints.
  result: true
  params:
  - {name: text, type: string, length_max: 4, description: What.}
  - {name: loud, type: boolean, default: false, description: How.}
  - {name: small, type: uint8, description: A byte.}
  - {name: ranged, type: int32, minimum: -1, maximum: 9999, description: Some.}
  - {name: large, type: uint64, description: Many.}
  - {name: id, type: uuid, description: Which.}
  - {name: colour, type: enum, class: colour, description: A colour.}
  - {name: at, type: object, class: point, description: Where.}
  - {name: line, type: array, class: points, description: From where to where.}
- name: stop
  alias: halt
  description: Stops.
  result: true
";

fn validate(params: Value) -> Result<Value, RpcError> {
    let schema = Schema::parse(SMALL).unwrap();
    let method = schema.method("paint").unwrap();
    schema.validate(method, Some(params)).map(Value::Object)
}

#[test]
fn defaults_are_filled_in_at_every_depth() {
    assert_eq!(validate(json!({})).unwrap(), json!({"loud": false}));
    assert_eq!(
        validate(json!({"loud": true, "line": [{"x": 1}, {"x": 2, "y": 3}]})).unwrap(),
        json!({"loud": true, "line": [{"x": 1, "y": 7}, {"x": 2, "y": 3}]})
    );
}

#[test]
fn words_match_in_any_case_and_arrive_as_the_schema_spells_them() {
    let params = validate(json!({"colour": "GREEN"})).unwrap();
    assert_eq!(params["colour"], "Green");
}

#[test]
fn integers_may_be_written_with_a_fraction_or_an_exponent() {
    let params: Value = serde_json::from_str(r#"{"small": 2.0, "large": 4.096e3}"#).unwrap();
    let params = validate(params).unwrap();
    assert_eq!(
        (&params["small"], &params["large"]),
        (&json!(2), &json!(4096))
    );
}

#[test]
fn refusals_name_the_key_and_the_limit() {
    let cases = [
        (
            json!({"tex": "a"}),
            "'tex' is not known; known are text, loud, small, ranged, large, id, colour, at, line",
        ),
        (json!({"text": 1}), "'text' must be a string"),
        (json!({"text": null}), "'text' must be a string"),
        (json!({"text": "12345"}), "'text' may have at most 4 bytes"),
        (json!({"loud": 1}), "'loud' must be true or false"),
        (
            json!({"small": 256}),
            "'small' must be an integer from 0 to 255",
        ),
        (
            json!({"small": -1}),
            "'small' must be an integer from 0 to 255",
        ),
        (
            json!({"small": 1.5}),
            "'small' must be an integer from 0 to 255",
        ),
        (
            json!({"small": "1"}),
            "'small' must be an integer from 0 to 255",
        ),
        (json!({"ranged": -2}), "'ranged' must be from -1 to 9999"),
        (json!({"ranged": 10000}), "'ranged' must be from -1 to 9999"),
        (
            json!({"large": 1e20}),
            "'large' must be an integer from 0 to 18446744073709551615",
        ),
        (json!({"id": "0-1"}), "'id' must be a UUID"),
        (
            json!({"colour": "blue"}),
            "'colour' must be one of Red, Green",
        ),
        (json!({"colour": 1}), "'colour' must be one of Red, Green"),
        (json!({"at": 1}), "'at' must be an object"),
        (json!({"at": {}}), "'at.x' is missing"),
        (
            json!({"at": {"x": 1, "z": 1}}),
            "'at.z' is not known; known are x, y",
        ),
        (json!({"line": {}}), "'line' must be an array"),
        (
            json!({"line": [{"x": 1}, {"x": 300}]}),
            "'line[1].x' must be an integer from 0 to 255",
        ),
        (
            json!({"line": [{"x": 1}, {"x": 1}, {"x": 1}]}),
            "'line' may have at most 2 elements",
        ),
        (json!([1]), "parameters must be given by name, in an object"),
    ];
    for (params, text) in cases {
        let error = validate(params.clone()).unwrap_err();
        assert_eq!(error.code, RpcError::INVALID_PARAMS, "{params}");
        assert_eq!(error.message, format!("Invalid parameters: {text}"));
    }
}

#[test]
fn a_method_without_parameters_refuses_even_an_empty_object() {
    let schema = Schema::parse(SMALL).unwrap();
    let method = schema.method("stop").unwrap();
    assert!(schema.validate(method, None).unwrap().is_empty());
    let error = schema.validate(method, Some(json!({}))).unwrap_err();
    assert_eq!(
        error,
        RpcError::invalid_params("stop requires no parameters")
    );
}

#[test]
fn a_registration_that_differs_from_the_schema_is_named() {
    let schema = Schema::parse(SMALL).unwrap();
    assert_eq!(schema.check_registered("any", ["stop", "paint"]), Ok(()));
    assert_eq!(
        schema
            .check_registered("any", ["paint", "draw"])
            .unwrap_err(),
        "in the schema but not registered: [\"stop\"]; registered but not in the schema: [\"draw\"]"
    );
}

#[test]
fn a_method_of_one_program_is_not_missed_in_another() {
    let yaml = "methods: [{name: m, description: d, result: r, program: painter}]";
    let schema = Schema::parse(yaml).unwrap();
    assert_eq!(schema.check_registered("painter", ["m"]), Ok(()));
    assert_eq!(schema.check_registered("other", []), Ok(()));
    assert!(schema.check_registered("painter", []).is_err());
    assert!(schema.check_registered("other", ["m"]).is_err());
    assert!(schema.to_markdown().contains("Served by `painter` only."));
}

#[test]
fn inconsistent_schemas_are_refused() {
    let method = |params: &str| {
        format!("methods: [{{name: m, description: d, result: r, params: [{params}]}}]")
    };
    let twice = "methods: [{name: m, description: d, result: r}, {name: n, alias: m, description: d, result: r}]";
    let cases = [
        (twice.to_owned(), "method m is there twice"),
        (
            method("{name: a, type: enum, class: b, description: d}"),
            "m.a: Some(\"b\") is no class of its type",
        ),
        (
            method("{name: a, type: array, description: d}"),
            "m.a: None is no class of its type",
        ),
        (
            method("{name: a, type: uint8, default: 256, description: d}"),
            "the default of m.a: 'a' must be an integer from 0 to 255",
        ),
        (
            method("{name: a, type: uint8, default: 1, required: true, description: d}"),
            "m.a is required and has a default",
        ),
        (
            method(
                "{name: a, type: uint8, description: d}, {name: a, type: uint8, description: d}",
            ),
            "m.a is there twice",
        ),
    ];
    for (yaml, text) in cases {
        assert_eq!(Schema::parse(&yaml).unwrap_err(), text);
    }
    assert!(Schema::parse("methods: [{name: m, colour: red}]").is_err());
}

#[test]
fn the_builtin_schema_is_consistent_and_every_entry_is_used() {
    let schema = Schema::builtin();
    let params = schema.methods.iter().flat_map(|method| &method.params);
    let members = schema.objects.iter().flat_map(|object| &object.fields);
    let mut used: BTreeSet<&str> = params
        .chain(members)
        .filter_map(|p| p.class.as_deref())
        .collect();
    used.extend(
        schema
            .arrays
            .iter()
            .filter_map(|array| array.class.as_deref()),
    );
    let named = schema.enums.iter().map(|e| &e.name);
    let named = named.chain(schema.objects.iter().map(|o| &o.name));
    for name in named.chain(schema.arrays.iter().map(|a| &a.name)) {
        assert!(used.contains(name.as_str()), "{name} is not used");
    }
}

fn assert_generated(path: &str, expected: &str) {
    let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{path} is stale: run UPDATE_GENERATED=1 cargo test -p rnbd-rpc"
    );
}

#[test]
fn the_documentation_is_up_to_date() {
    assert_generated("docs/rpc.md", &Schema::builtin().to_markdown());
}

#[test]
fn the_clients_schema_is_up_to_date() {
    assert_generated("scripts/rnbd_schema.json", &Schema::builtin().to_json());
}
