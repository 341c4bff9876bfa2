//! `dormouse-supervisor`: the static binary on a host. Everything it does is in [`dormouse::supervisor`].

use std::process::ExitCode;

fn main() -> ExitCode {
    dormouse::supervisor::main(std::env::args_os().skip(1))
}
