//! `iofs-sign generate`, which packages are made with: manual pages and completions, from the definition of the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use iofs_sign::report::{Failure, Output};
use serde::Serialize;

/// Write the manual pages, one per verb, and the completions of bash, zsh and fish
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder to write them into: 'man' and 'completions' are made in it
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Debug, Serialize)]
struct Generated {
    /// Every file.
    files: Vec<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let files = generate(visible(&super::Arguments::command()), &arguments.folder)
        .map_err(|error| Failure::io(format_args!("write into {}", arguments.folder.display()), &error))?;
    let generated = Generated { files };
    output.result(&generated, || format!("{} files in {}", generated.files.len(), arguments.folder.display()));
    Ok(())
}

/// The command without its hidden verbs, which completions would offer.
fn visible(command: &Command) -> Command {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    Command::new("iofs-sign")
        .about(command.get_about().cloned().unwrap_or_default())
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .args(command.get_arguments().cloned())
        .subcommands(verbs)
}

fn generate(mut command: Command, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    let name = command.get_name().to_owned();
    let mut files = Vec::new();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        files.push(clap_complete::generate_to(shell, &mut command, &name, &completions)?);
    }
    command.build();
    write_manual(&command, &man, &mut files)?;
    Ok(files)
}

/// The page of a command, and those of the commands below it.
fn write_manual(command: &Command, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for below in command.get_subcommands() {
        write_manual(below, folder, files)?;
    }
    let man = Man::new(command.clone().after_help(None))
        .manual("iofs")
        .source(format!("iofs-sign {}", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render(&mut page)?;
    if let Some(text) = command.get_after_help() {
        examples(&text.to_string()).to_writer(&mut page)?;
    }
    let path = folder.join(man.get_filename());
    fs::write(&path, page)?;
    files.push(path);
    Ok(())
}

/// What help shows last, line by line: clap_mangen would fill the examples' lines into a paragraph.
fn examples(text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in text.lines().filter(|line| !matches!(*line, "Examples:" | "Example:")) {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}
