mod access;
mod devices;
mod requests;
