use serde::Deserialize;
use serde_json::{Map, Value, json};

use rnbd_rpc::{RpcError, RpcResult};

use super::{Methods, NoParams};
use crate::logging::{FLAGS, Level, Logger};

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("log_set_print_level", |_, params| {
        set_level(&params, Logger::set_print_level)
    });
    methods.add_sync("log_get_print_level", |_, NoParams {}| {
        Ok(json!(Logger::get().print_level().name()))
    });
    methods.add_sync("log_set_level", |_, params| {
        set_level(&params, Logger::set_log_level)
    });
    methods.add_sync("log_get_level", |_, NoParams {}| {
        Ok(json!(Logger::get().log_level().name()))
    });
    methods.add_sync("log_set_flag", |_, params| set_flag(&params, true));
    methods.add_sync("log_clear_flag", |_, params| set_flag(&params, false));
    methods.add_sync("log_get_flags", |_, NoParams {}| Ok(flags()));
    methods.add_sync("log_enable_timestamps", |_, params: Timestamps| {
        Logger::get().set_timestamps(params.enabled);
        Ok(json!(true))
    });
}

#[derive(Deserialize)]
struct LevelName {
    level: String,
}

#[derive(Deserialize)]
struct Flag {
    flag: String,
}

#[derive(Deserialize)]
struct Timestamps {
    enabled: bool,
}

fn set_level(params: &LevelName, set: fn(&Logger, Level)) -> RpcResult {
    let level = Level::from_name(&params.level).ok_or_else(|| {
        RpcError::invalid_params("level must be ERROR, WARNING, NOTICE, INFO or DEBUG")
    })?;
    set(Logger::get(), level);
    Ok(json!(true))
}

fn set_flag(params: &Flag, enabled: bool) -> RpcResult {
    if Logger::get().set_flag(&params.flag, enabled) {
        return Ok(json!(true));
    }
    Err(RpcError::invalid_params("invalid log flag"))
}

fn flags() -> Value {
    let logger = Logger::get();
    let flags = FLAGS
        .iter()
        .map(|name| ((*name).to_owned(), json!(logger.flag(name))));
    Value::Object(flags.collect::<Map<_, _>>())
}
