//! `--attach`: a remote device as a bdev before the run, without a configuration file.

use std::str::FromStr;

use anyhow::Context;
use rnbd_framework::Env;
use serde_json::{Map, Value, json};

/// A device of a target, and the parameters of `bdev_rnbd_attach_controller` to reach it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attach {
    device: String,
    params: Map<String, Value>,
}

/// Parameters that are text; all others that can be said on a command line are numbers.
const TEXTS: [&str; 6] = [
    "trtype", "traddr", "trsvcid", "adrfam", "hostaddr", "sessname",
];

impl FromStr for Attach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut device = None;
        let mut params = Map::new();
        for pair in text.split(',') {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is no key=value"))?;
            match key {
                "device" => device = Some(value.to_owned()),
                key if TEXTS.contains(&key) => drop(params.insert(key.to_owned(), value.into())),
                key => drop(params.insert(key.to_owned(), number(key, value)?.into())),
            }
        }
        let device = device.filter(|_| params.contains_key("traddr"));
        let device = device.ok_or("traddr=ADDRESS and device=NAME are needed")?;
        Ok(Self { device, params })
    }
}

fn number(key: &str, value: &str) -> Result<i64, String> {
    let named = || {
        format!(
            "{key}={value}: neither device or one of {} nor a number for another parameter of \
             bdev_rnbd_attach_controller",
            TEXTS.join(", ")
        )
    };
    value.parse().map_err(|_| named())
}

impl Attach {
    /// Connects and maps; returns the bdevs' names. `index` tells several of them apart.
    ///
    /// # Errors
    /// What the connection failed with.
    pub(crate) async fn run(&self, env: &Env, index: usize) -> anyhow::Result<Vec<String>> {
        let names = env
            .rpc()
            .call("bdev_rnbd_attach_controller", Some(self.params(index)))
            .await
            .map_err(|error| anyhow::anyhow!("{}", error.message))
            .with_context(|| format!("cannot attach {} of {}", self.device, self.address()))?;
        serde_json::from_value(names).context("the names of the bdevs")
    }

    fn address(&self) -> String {
        let traddr = self.params["traddr"].as_str().unwrap_or_default();
        match self.params.get("trsvcid").and_then(Value::as_str) {
            Some(port) => format!("{traddr} port {port}"),
            None => traddr.to_owned(),
        }
    }

    fn params(&self, index: usize) -> Value {
        let mut params = self.params.clone();
        params
            .entry("sessname")
            .or_insert_with(|| format!("rnbd_perf_{}", std::process::id()).into());
        params.insert("name".to_owned(), format!("perf{index}").into());
        let devices = json!([{ "device_path": self.device }]);
        params.insert("devices".to_owned(), devices);
        Value::Object(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_of_the_method_can_be_said() {
        let attach: Attach = "traddr=127.0.0.1,device=disk0,reconnect_delay_sec=1,sessname=s"
            .parse()
            .unwrap();
        let params = attach.params(1);
        assert_eq!(params["name"], "perf1");
        assert_eq!(params["sessname"], "s");
        assert_eq!(params["reconnect_delay_sec"], 1);
        assert_eq!(params["devices"][0]["device_path"], "disk0");
        assert!(
            params.get("trsvcid").is_none(),
            "the method has the default"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Attach>().unwrap_err();
        assert!(error("traddr=127.0.0.1").contains("device=NAME"));
        assert!(error("device=disk0").contains("traddr=ADDRESS"));
        assert!(error("colour=red").contains("colour"));
        assert!(error("disk0").contains("no key=value"));
    }
}
