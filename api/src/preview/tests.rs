//! The proxy against local servers in the place of guests: all that HTTP/1.1 knows, without a machine.

mod access;
mod http;
mod mock;
mod raw;
mod streams;
