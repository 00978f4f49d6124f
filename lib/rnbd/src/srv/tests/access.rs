//! Who may open what.

use rnbd_base::Errno;
use rnbd_wire::rnbd::AccessMode::{self, Migration, ReadOnly, ReadWrite};

use crate::srv::*;

const CLIENT: &str = "192.0.2.1";

fn request<'a>(dev_name: &'a str, mode: AccessMode) -> OpenRequest<'a> {
    OpenRequest {
        sessname: "clt1",
        client: CLIENT.parse().unwrap(),
        dev_name,
        mode,
        device_id: 0,
    }
}

fn open(exports: &Exports, name: &str, mode: AccessMode) -> Result<Grant, Errno> {
    match exports.open(&request(name, mode))? {
        Lookup::Granted(grant) => Ok(grant),
        Lookup::Search(path) => panic!("{path:?}"),
    }
}

fn for_everybody(name: &str, bdev_name: &str) -> Export {
    Export {
        allow_any_host: true,
        ..Export::new(name, bdev_name)
    }
}

fn exports(export: Export) -> Exports {
    let exports = Exports::default();
    exports.create(export).unwrap();
    exports
}

fn rule(sessname: &str, source: Option<&str>, max_access: AccessMode) -> HostRule {
    HostRule {
        sessname: sessname.to_owned(),
        source: source.map(|source| source.parse().unwrap()),
        max_access,
    }
}

#[test]
fn writers_are_counted_by_bdev_over_all_names() {
    let exports = exports(for_everybody("disk", "Malloc0"));
    exports.create(for_everybody("alias", "Malloc0")).unwrap();
    let first = open(&exports, "disk", ReadWrite).unwrap();
    assert_eq!(open(&exports, "alias", ReadWrite), Err(Errno::PERM));
    assert!(open(&exports, "alias", ReadOnly).unwrap().view.read_only);
    let migrating = open(&exports, "alias", Migration).unwrap();
    assert_eq!(open(&exports, "disk", Migration), Err(Errno::PERM));
    exports.close(first.ticket);
    assert_eq!(open(&exports, "disk", ReadWrite), Err(Errno::PERM));
    exports.close(migrating.ticket);
    assert!(open(&exports, "disk", ReadWrite).is_ok());
}

#[test]
fn nobody_is_let_in_who_was_not_named() {
    let exports = exports(Export::new("disk", "Malloc0"));
    assert_eq!(open(&exports, "disk", ReadOnly), Err(Errno::ACCES));
    assert_eq!(open(&exports, "absent", ReadOnly), Err(Errno::NOENT));
    exports
        .add_host("disk", rule("clt?", Some("192.0.2.0/28"), ReadOnly))
        .unwrap();
    assert!(open(&exports, "disk", ReadOnly).is_ok());
    assert_eq!(open(&exports, "disk", ReadWrite), Err(Errno::ACCES));
    exports.remove_host("disk", "clt?").unwrap();
    exports
        .add_host("disk", rule("*", Some("198.51.100.0/24"), ReadWrite))
        .unwrap();
    assert_eq!(open(&exports, "disk", ReadOnly), Err(Errno::ACCES));
    exports
        .update("disk", |export| export.allow_any_host = true)
        .unwrap();
    assert!(open(&exports, "disk", ReadWrite).is_ok());
}

#[test]
fn a_rule_for_a_host_limits_it_although_anybody_may_open() {
    let exports = exports(for_everybody("disk", "Malloc0"));
    exports
        .add_host("disk", rule("clt1", None, ReadOnly))
        .unwrap();
    assert_eq!(open(&exports, "disk", ReadWrite), Err(Errno::ACCES));
}

#[test]
fn a_read_only_export_has_no_writers() {
    let exports = exports(Export {
        read_only: true,
        ..for_everybody("disk", "Malloc0")
    });
    assert_eq!(open(&exports, "disk", ReadWrite), Err(Errno::ACCES));
    assert!(open(&exports, "disk", ReadOnly).is_ok());
}

#[test]
fn an_export_that_is_open_is_deleted_by_force_only() {
    let exports = exports(for_everybody("disk", "Malloc0"));
    open(&exports, "disk", ReadWrite).unwrap();
    let refused = exports.delete("disk", false).unwrap_err();
    assert_eq!(refused.errno(), Errno::BUSY);
    assert_eq!(exports.get("disk").unwrap().opens[0].sessname, "clt1");
    exports.delete("disk", true).unwrap();
    assert!(exports.list().is_empty());
    assert_eq!(exports.opens().len(), 1, "it stays open until it is closed");
}

#[test]
fn names_are_taken_once_and_errors_say_which() {
    let exports = exports(for_everybody("disk", "Malloc0"));
    let twice = exports
        .create(for_everybody("disk", "Malloc1"))
        .unwrap_err();
    assert_eq!(
        (twice.errno(), twice.to_string()),
        (Errno::EXIST, "export disk exists already".into())
    );
    let absent = exports.delete("other", false).unwrap_err();
    assert_eq!(absent.errno(), Errno::NOENT);
    exports.add_host("disk", rule("a", None, ReadOnly)).unwrap();
    let again = exports
        .add_host("disk", rule("a", None, ReadWrite))
        .unwrap_err();
    assert_eq!(again.errno(), Errno::EXIST);
    assert_eq!(
        exports.remove_host("disk", "b").unwrap_err().errno(),
        Errno::NOENT
    );
}

#[test]
fn files_are_found_only_when_both_path_and_hosts_are_allowed() {
    let exports = Exports::default();
    let ask = |name| exports.open(&request(name, ReadWrite));
    assert_eq!(ask("disk"), Err(Errno::NOENT));
    let mut options = ServiceOptions {
        dev_search_path: Some("/srv/%SESSNAME%".to_owned()),
        ..ServiceOptions::default()
    };
    exports.set_options(options.clone());
    assert_eq!(ask("disk"), Err(Errno::ACCES));
    options.allow_any_host = true;
    exports.set_options(options);
    let found = OpenPath {
        root: "/srv/clt1".into(),
        relative: "disk".into(),
        write: true,
    };
    assert_eq!(ask("/disk"), Ok(Lookup::Search(found)));
    assert_eq!(ask("../disk"), Err(Errno::INVAL));

    let request = request("disk", ReadWrite);
    let grant = exports.grant_found(&request, "file0").unwrap();
    assert_eq!(exports.grant_found(&request, "file0"), Err(Errno::PERM));
    assert_eq!(exports.close(grant.ticket).as_deref(), Some("file0"));
}

#[test]
fn the_service_caps_what_anybody_may_ask_for() {
    let exports = exports(for_everybody("disk", "Malloc0"));
    exports.set_options(ServiceOptions {
        max_access: ReadOnly,
        ..ServiceOptions::default()
    });
    assert_eq!(open(&exports, "disk", ReadWrite), Err(Errno::ACCES));
}
