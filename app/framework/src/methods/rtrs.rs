mod report;

use std::rc::Rc;

use rnbd_base::{Errno, Nanos};
use rnbd_proto::target::{Selector, SessionInfo};
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Methods, NoParams, stopped};
use crate::address::{ListenAddress, TrType};
use crate::reply::reply;
use crate::system::System;
use crate::target::{RtrsOptions, Transport, TransportOptions};

/// How long `rtrs_disconnect_session` waits for the session's I/O to end.
const DISCONNECT_TIMEOUT: Nanos = Nanos::from_secs(30);

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("rtrs_set_options", |system, options: RtrsOptions| {
        options.check(&system.reactors)?;
        system.target.set_options(options);
        Ok(json!(true))
    });
    methods.add_sync(
        "rtrs_create_transport",
        |system, options: TransportOptions| {
            let target = &system.target;
            target.create_transport(options, system)?;
            Ok(json!(true))
        },
    );
    methods.add("rtrs_delete_transport", delete_transport);
    methods.add_sync("rtrs_get_transports", get_transports);
    methods.add("rtrs_add_listener", add_listener);
    methods.add("rtrs_remove_listener", remove_listener);
    methods.add("rtrs_get_listeners", |system, NoParams {}| {
        get_listeners(system)
    });
    methods.add("rtrs_get_sessions", get_sessions);
    methods.add("rtrs_disconnect_session", disconnect_session);
    methods.add("rtrs_get_stats", get_stats);
    methods.add("rtrs_reset_stats", reset_stats);
}

#[derive(Deserialize)]
struct OneTransport {
    trtype: TrType,
}

async fn delete_transport(system: Rc<System>, params: OneTransport) -> RpcResult {
    system
        .target
        .delete_transport(params.trtype, &system.reactors)
        .await?;
    Ok(json!(true))
}

#[derive(Deserialize)]
struct SomeTransports {
    trtype: Option<TrType>,
}

fn get_transports(system: &System, params: SomeTransports) -> RpcResult {
    let transports = match params.trtype {
        Some(trtype) => vec![system.target.transport(trtype)?],
        None => system.target.transports(),
    };
    Ok(transports.iter().map(report::transport).collect())
}

#[derive(Deserialize)]
struct Listener {
    listen_address: ListenAddress,
}

async fn add_listener(system: Rc<System>, params: Listener) -> RpcResult {
    system.target.add_listener(params.listen_address).await?;
    Ok(json!(true))
}

async fn remove_listener(system: Rc<System>, params: Listener) -> RpcResult {
    system.target.remove_listener(params.listen_address).await?;
    Ok(json!(true))
}

async fn get_listeners(system: Rc<System>) -> RpcResult {
    let mut all = Vec::new();
    for transport in system.target.transports() {
        let (callback, answer) = reply();
        transport.handle.listeners(callback)?;
        let listeners = answer.await.ok_or_else(stopped)?;
        let describe = |info| report::listener(transport.options.trtype, info);
        all.extend(listeners.iter().map(describe));
    }
    Ok(Value::Array(all))
}

/// The sessions of all transports, or the one of that name.
pub(super) async fn sessions(
    system: &System,
    sessname: Option<&str>,
) -> Result<Vec<SessionInfo>, RpcError> {
    let mut sessions = Vec::new();
    for transport in system.target.transports() {
        let (callback, answer) = reply();
        transport.handle.sessions(callback)?;
        sessions.extend(answer.await.ok_or_else(stopped)?);
    }
    let Some(name) = sessname else {
        return Ok(sessions);
    };
    sessions.retain(|session| session.sessname == name);
    match sessions.is_empty() {
        true => Err(no_session(name)),
        false => Ok(sessions),
    }
}

pub(super) fn no_session(name: &str) -> RpcError {
    let text = format!("there is no session {name}; see rtrs_get_sessions");
    RpcError::errno(Errno::NOENT, text)
}

#[derive(Deserialize)]
struct SomeSessions {
    sessname: Option<String>,
}

async fn get_sessions(system: Rc<System>, params: SomeSessions) -> RpcResult {
    let sessions = sessions(&system, params.sessname.as_deref()).await?;
    let clock = system.reactors.clock();
    let describe = |session| report::session(session, clock);
    Ok(sessions.iter().map(describe).collect())
}

#[derive(Deserialize)]
struct DisconnectSession {
    sessname: String,
    path: Option<String>,
    wait: bool,
}

async fn disconnect_session(system: Rc<System>, params: DisconnectSession) -> RpcResult {
    let wait = params.wait.then_some(DISCONNECT_TIMEOUT);
    let selector = Selector {
        sessname: params.sessname,
        path: params.path,
    };
    let order =
        |transport: &Transport, callback| transport.handle.disconnect(&selector, wait, callback);
    with_session(&system, &selector.sessname, order).await
}

#[derive(Deserialize)]
struct ResetStats {
    sessname: Option<String>,
    path: Option<String>,
}

async fn reset_stats(system: Rc<System>, params: ResetStats) -> RpcResult {
    let names = match params.sessname {
        Some(name) => vec![name],
        None => {
            let all = sessions(&system, None).await?;
            all.into_iter().map(|session| session.sessname).collect()
        }
    };
    for sessname in names {
        reset_session(&system, &sessname, params.path.clone()).await?;
    }
    Ok(json!(true))
}

async fn reset_session(system: &System, sessname: &str, path: Option<String>) -> RpcResult {
    let selector = Selector {
        sessname: sessname.to_owned(),
        path,
    };
    let order = |transport: &Transport, callback| transport.handle.reset_stats(&selector, callback);
    with_session(system, sessname, order).await
}

type Callback = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// Gives an order about a session to the transport that has it.
pub(super) async fn with_session(
    system: &System,
    sessname: &str,
    order: impl Fn(&Transport, Callback) -> Result<(), Errno>,
) -> RpcResult {
    for transport in system.target.transports() {
        let (callback, answer) = reply();
        order(&transport, callback)?;
        match answer.await.ok_or_else(stopped)? {
            Ok(()) => return Ok(json!(true)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(no_session(sessname))
}

#[derive(Deserialize)]
struct GetStats {
    sessname: Option<String>,
    per_path: bool,
    reset_mode: ResetMode,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResetMode {
    All,
    None,
}

async fn get_stats(system: Rc<System>, params: GetStats) -> RpcResult {
    let mut poll_groups = Vec::new();
    for transport in system.target.transports() {
        let (callback, answer) = reply();
        transport.handle.stats(callback)?;
        let shards = answer.await.ok_or_else(stopped)?;
        let trtype = transport.options.trtype;
        poll_groups.extend(shards.iter().map(|shard| report::shard(trtype, shard)));
    }
    let sessions = sessions(&system, params.sessname.as_deref()).await?;
    if params.reset_mode == ResetMode::All {
        for session in &sessions {
            // One that has ended meanwhile has no counters any more.
            let _ = reset_session(&system, &session.sessname, None).await;
        }
    }
    let describe = |session| report::session_stats(session, params.per_path);
    Ok(json!({
        "tick_rate": system.reactors.clock().tick_rate(),
        "poll_groups": poll_groups,
        "sessions": sessions.iter().map(describe).collect::<Vec<_>>(),
    }))
}
