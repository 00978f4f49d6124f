//! What every rnbd program starts with: options, memory, reactors, RPC, config.
