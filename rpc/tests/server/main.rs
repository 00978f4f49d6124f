//! The RPC server on a real socket: every rule of spdk-conventions.md A.1 to A.4 and table B.

#[cfg(test)]
mod framing;
#[cfg(test)]
mod methods;
#[cfg(test)]
mod support;
