//! `--attach`: a remote device as a bdev before the run, without a configuration file.

use std::str::FromStr;

use anyhow::Context;
use rnbd_framework::Env;
use serde_json::{Value, json};

/// A device of a target, and the session to reach it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attach {
    trtype: String,
    traddr: String,
    trsvcid: String,
    device: String,
    sessname: String,
}

impl FromStr for Attach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut attach = Self {
            trtype: "TCP".to_owned(),
            traddr: String::new(),
            trsvcid: "1234".to_owned(),
            device: String::new(),
            sessname: format!("rnbd_perf_{}", std::process::id()),
        };
        for pair in text.split(',') {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is no key=value"))?;
            *attach.member(key)? = value.to_owned();
        }
        if attach.traddr.is_empty() || attach.device.is_empty() {
            return Err("traddr=ADDRESS and device=NAME are needed".to_owned());
        }
        Ok(attach)
    }
}

impl Attach {
    fn member(&mut self, key: &str) -> Result<&mut String, String> {
        Ok(match key {
            "trtype" => &mut self.trtype,
            "traddr" => &mut self.traddr,
            "trsvcid" => &mut self.trsvcid,
            "device" => &mut self.device,
            "sessname" => &mut self.sessname,
            _ => {
                return Err(format!(
                    "there is no key {key:?}; there are trtype, traddr, trsvcid, device, sessname"
                ));
            }
        })
    }

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
            .with_context(|| {
                let Self {
                    device,
                    traddr,
                    trsvcid,
                    ..
                } = self;
                format!("cannot attach {device} of {traddr} port {trsvcid}")
            })?;
        serde_json::from_value(names).context("the names of the bdevs")
    }

    fn params(&self, index: usize) -> Value {
        json!({
            "name": format!("perf{index}"),
            "sessname": self.sessname,
            "trtype": self.trtype,
            "traddr": self.traddr,
            "trsvcid": self.trsvcid,
            "devices": [{"device_path": self.device}],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let attach: Attach = "traddr=127.0.0.1,device=disk0".parse().unwrap();
        let params = attach.params(1);
        assert_eq!(params["trsvcid"], "1234");
        assert_eq!(params["trtype"], "TCP");
        assert_eq!(params["name"], "perf1");
        assert_eq!(params["devices"][0]["device_path"], "disk0");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Attach>().unwrap_err();
        assert!(error("traddr=127.0.0.1").contains("device=NAME"));
        assert!(error("colour=red").contains("colour"));
        assert!(error("disk0").contains("no key=value"));
    }
}
