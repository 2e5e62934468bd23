//! The command `iofs-sign`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
