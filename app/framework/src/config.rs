//! The JSON configuration: a list of RPC calls by subsystem (spdk-conventions.md A.5).

mod comments;

use std::path::Path;

use anyhow::{Context, bail};
use rnbd_rpc::{Rpc, RpcError, State};
use serde::Deserialize;
use serde_json::Value;

/// A configuration file's content.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    subsystems: Vec<Subsystem>,
}

#[derive(Debug, Deserialize)]
struct Subsystem {
    subsystem: String,
    #[serde(default)]
    config: Option<Vec<Entry>>,
}

/// One call, or several whose states are looked at together.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Entry {
    Call(Call),
    Batch(Vec<Call>),
}

#[derive(Debug, Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    params: Option<Value>,
}

impl Config {
    /// Reads a file; comments are allowed.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {} is not valid", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(serde_json::from_str(&comments::blank(text))?)
    }

    /// Makes the calls that belong to `pass`. A method that may be called in both states is called
    /// in the first pass.
    ///
    /// # Errors
    /// The first call that failed, unless `ignore_errors`: then it is logged and the next is made.
    pub(crate) async fn apply(
        &self,
        rpc: &Rpc,
        pass: State,
        known_subsystems: &[&str],
        ignore_errors: bool,
    ) -> anyhow::Result<()> {
        for subsystem in &self.subsystems {
            let known = known_subsystems.contains(&subsystem.subsystem.as_str());
            for entry in subsystem.config.iter().flatten() {
                match entry.apply(rpc, pass, known).await {
                    Err(error) if ignore_errors => log::warn!("{error:#}; going on"),
                    result => result.with_context(|| {
                        format!("configuration of subsystem {}", subsystem.subsystem)
                    })?,
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn calls(&self) -> &[Call] {
        match self {
            Self::Call(call) => std::slice::from_ref(call),
            Self::Batch(calls) => calls,
        }
    }

    async fn apply(&self, rpc: &Rpc, pass: State, known: bool) -> anyhow::Result<()> {
        let Some(when) = self.pass(rpc, known)? else {
            return Ok(());
        };
        if when != pass {
            return Ok(());
        }
        for call in self.calls() {
            call.apply(rpc).await?;
        }
        Ok(())
    }

    /// The pass in which all calls of this entry can be made; `None` to skip it.
    fn pass(&self, rpc: &Rpc, known: bool) -> anyhow::Result<Option<State>> {
        let (mut startup, mut runtime) = (true, true);
        for call in self.calls() {
            let Some(states) = rpc.states_of(&call.method) else {
                if known {
                    bail!("{} is not a method of this program", call.method);
                }
                log::info!("{} skipped: its subsystem is not here", call.method);
                return Ok(None);
            };
            startup &= states.contains(&State::Startup);
            runtime &= states.contains(&State::Runtime);
        }
        match (startup, runtime) {
            (true, _) => Ok(Some(State::Startup)),
            (false, true) => Ok(Some(State::Runtime)),
            (false, false) => bail!("a batch mixes methods of different states"),
        }
    }
}

impl Call {
    async fn apply(&self, rpc: &Rpc) -> anyhow::Result<()> {
        let result = rpc.call(&self.method, self.params.clone()).await;
        let describe = |RpcError { code, message, .. }| {
            anyhow::anyhow!("{} failed: {message} ({code})", self.method)
        };
        result.map(drop).map_err(describe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_save_config_writes_is_read() {
        let config = Config::parse(
            r#"{ "subsystems": [
                { "subsystem": "bdev", "config": [
                    { "method": "bdev_set_options", "params": { "bdev_auto_examine": true } },
                    [ { "method": "a" }, { "method": "b" } ],
                    []
                ] },
                { "subsystem": "nbd", "config": null }
            ], "else": 1 }"#,
        )
        .unwrap();
        let entries = config.subsystems[0].config.as_deref().unwrap();
        let calls: Vec<usize> = entries.iter().map(|entry| entry.calls().len()).collect();
        assert_eq!(calls, [1, 2, 0]);
        assert!(config.subsystems[1].config.is_none());
    }

    #[test]
    fn comments_are_no_json_but_allowed() {
        let text = "// first\n{ /* none */ \"subsystems\": [] }";
        assert!(Config::parse(text).is_ok());
        assert!(Config::parse("{ \"subsystems\": [ / ] }").is_err());
    }

    #[test]
    fn an_entry_without_a_method_is_refused() {
        let text = r#"{"subsystems":[{"subsystem":"bdev","config":[{"params":{}}]}]}"#;
        assert!(Config::parse(text).is_err());
    }
}
