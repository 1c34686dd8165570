//! `rsup init`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::cli::error::CliError;
use crate::cli::{Context, render};
use crate::config;

/// Write a supervisor.toml to begin with
///
/// It fits what is found in the folder, and has comments.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  cd /srv/api && rsup init && rsup start")]
pub struct Args {
    /// Where to write it
    #[arg(value_name = "FILE", default_value = "supervisor.toml")]
    file: PathBuf,
    /// Overwrite a file that is there
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let shown = args.file.display();
    let folder = args
        .file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let text = config::sample(folder);
    let mut options = OpenOptions::new();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options
        .open(&args.file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => {
            let written = render::Written { file: args.file };
            cx.out.result("`rsup init`", &written, &written.to_string());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound && args.file.is_relative() => {
            Err(CliError::of_here(&format!("cannot write {shown}"), &error))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(CliError::usage(format!(
            "{shown} exists already\nnothing was changed"
        ))
        .hint("--force overwrites it")),
        Err(error) => Err(CliError::failed(
            "local",
            format!("cannot write {shown}: {error}"),
        )),
    }
}
