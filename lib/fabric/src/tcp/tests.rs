mod conformance;
mod hostile;
mod idle;
mod peer;
mod streams;
