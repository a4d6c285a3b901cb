//! `loopback FOLDER [ADDRESS]`: serves `FOLDER/owner/name` and `FOLDER/datasets/owner/name` as a hub would.
//!
//! Its first line is the address to put into `HF_ENDPOINT`. It runs until its standard input ends.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(folder) = args.next() else {
        eprintln!("usage: loopback FOLDER [ADDRESS]");
        return ExitCode::from(2);
    };
    let address = args.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    match loopback::Hub::at(folder.as_ref(), &address) {
        Ok(hub) => {
            println!("{}", hub.endpoint());
            let mut rest = Vec::new();
            // An end and an error both mean that nobody holds the other end.
            let _ = std::io::stdin().read_to_end(&mut rest);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}
