mod conformance;
mod hostile;
mod idle;
mod lent;
mod peer;
mod streams;
