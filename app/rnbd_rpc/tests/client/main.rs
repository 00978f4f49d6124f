//! The program against a real server: what it prints and how it exits.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod config;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod support;
#[cfg(test)]
mod views;
