//! Why a program could not be started, as messages for the user.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Credentials;
use crate::sys::limits;

/// A step on the way to a running program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Duplicating descriptors.
    Files = 1,
    /// `fork(2)`
    Fork,
    /// Getting the child's pidfd and start time.
    Identify,
    /// `setsid(2)`
    Session,
    /// `setrlimit(2)`
    Limit,
    /// Installing the filter that reports `bind(2)`.
    Filter,
    /// Becoming another user.
    User,
    /// `chdir(2)`
    Directory,
    /// `execve(2)`
    Exec,
    /// Moving into its cgroup.
    Cgroup,
    /// `setpriority(2)`
    Nice,
    /// Giving up capabilities.
    Capabilities,
    /// `PR_SET_NO_NEW_PRIVS`
    NoNewPrivs,
}

impl Step {
    pub(super) fn from_code(code: u8) -> Option<Step> {
        use Step::{
            Capabilities, Cgroup, Directory, Exec, Files, Filter, Fork, Identify, Limit, Nice,
            NoNewPrivs, Session, User,
        };
        [
            Files,
            Fork,
            Identify,
            Session,
            Limit,
            Filter,
            User,
            Directory,
            Exec,
            Cgroup,
            Nice,
            Capabilities,
            NoNewPrivs,
        ]
        .into_iter()
        .find(|&step| step as u8 == code)
    }

    fn words(self) -> &'static str {
        match self {
            Step::Files => "cannot pass its file descriptors",
            Step::Fork => "cannot fork",
            Step::Identify => "cannot identify the new process",
            Step::Session => "cannot make a session for it (setsid)",
            Step::Limit => "cannot set its limit of open files",
            Step::Filter => "cannot install the filter that hands over sockets",
            Step::User => "cannot become its user",
            Step::Directory => "cannot enter its directory",
            Step::Exec => "cannot execute it",
            Step::Cgroup => "cannot move it into its cgroup",
            Step::Nice => "cannot set its priority (limits.nice)",
            Step::Capabilities => "cannot restrict its capabilities (limits.capabilities)",
            Step::NoNewPrivs => "cannot set no_new_privs",
        }
    }
}

/// A program could not be started.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SpawnError {
    /// No arguments at all, or an empty program name.
    #[error("the command is empty")]
    Empty,
    /// A string with a zero byte in it.
    #[error("the {what} contains a zero byte")]
    ZeroByte {
        /// The name of the string.
        what: &'static str,
    },
    /// Not on the `PATH`, or no such file.
    #[error("{} not found{hint}", program.display())]
    NotFound {
        /// As written in the command.
        program: PathBuf,
        /// The places that were searched, and a suggestion where there is one.
        hint: String,
    },
    /// It is a directory.
    #[error("{} is a directory, not a program", program.display())]
    IsDirectory {
        /// Its path.
        program: PathBuf,
    },
    /// It lacks the permission bit.
    #[error("{0} is not executable (chmod +x {0})", program.display())]
    NotExecutable {
        /// Its path.
        program: PathBuf,
    },
    /// Its user may not execute it.
    #[error("{} may not be executed by {user}: {reason}", program.display())]
    Denied {
        /// Its path.
        program: PathBuf,
        /// The user, for the message.
        user: String,
        /// What stands in the way.
        reason: String,
    },
    /// `ENOEXEC`
    #[error(
        "{0} is neither a binary of this machine nor a script with a #! line: \
         add one, or name its interpreter in the command", program.display()
    )]
    BadFormat {
        /// Its path.
        program: PathBuf,
    },
    /// The `#!` line names a file that does not exist.
    #[error("{}: its interpreter {interpreter} does not exist", program.display())]
    NoInterpreter {
        /// Its path.
        program: PathBuf,
        /// As in its first line.
        interpreter: String,
    },
    /// The working directory does not exist or is not accessible.
    #[error("the working directory {}: {reason}", cwd.display())]
    Directory {
        /// Its path.
        cwd: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `EAGAIN` of fork.
    #[error("{limit}")]
    ProcessLimit {
        /// The limit, and where it is set.
        limit: String,
    },
    /// `EMFILE` or `ENFILE`.
    #[error("{}", limits::files())]
    FileLimit,
    /// Anything else.
    #[error("{}: {message}", step.words())]
    System {
        /// The step that failed.
        step: Step,
        /// The system's error.
        message: String,
        /// Its `errno`, where there is one.
        errno: Option<i32>,
    },
}

impl SpawnError {
    pub(in crate::sys) fn system(step: Step, error: &io::Error) -> SpawnError {
        match (step, error.raw_os_error()) {
            (Step::Fork, Some(libc::EAGAIN)) => SpawnError::ProcessLimit {
                limit: limits::processes(None),
            },
            // EINVAL: F_DUPFD beyond the limit.
            (_, Some(libc::EMFILE | libc::ENFILE)) | (Step::Files, Some(libc::EINVAL)) => {
                SpawnError::FileLimit
            }
            (_, errno) => SpawnError::System {
                step,
                message: error.to_string(),
                errno,
            },
        }
    }

    /// The error that a child reported. `program` is the path given to exec, relative to `cwd`
    /// perhaps.
    pub(super) fn in_child(
        step: Step,
        errno: i32,
        program: &Path,
        cwd: &Path,
        user: Option<&Credentials>,
    ) -> SpawnError {
        let file = super::from(cwd, program);
        let program = program.to_owned();
        if let (libc::EACCES, Some(user)) = (errno, user) {
            match step {
                Step::Directory => {
                    let reason =
                        format!("{} may not enter it: {}", user.words(), closed(cwd, user));
                    return SpawnError::Directory {
                        cwd: cwd.to_owned(),
                        reason,
                    };
                }
                Step::Exec => {
                    return SpawnError::Denied {
                        program,
                        user: user.words(),
                        reason: closed(&file, user),
                    };
                }
                _ => {}
            }
        }
        match (step, errno) {
            (Step::Directory, errno) => SpawnError::directory(cwd, errno),
            (Step::Exec, libc::ENOEXEC) => SpawnError::BadFormat { program },
            (Step::Exec, libc::EACCES) => SpawnError::NotExecutable { program },
            (Step::Exec, libc::ENOENT) => match interpreter(&file) {
                Some(interpreter) => SpawnError::NoInterpreter {
                    program,
                    interpreter,
                },
                // A binary without its loader fails in the same way.
                None if file.exists() => SpawnError::NoInterpreter {
                    program,
                    interpreter: "or dynamic loader".to_owned(),
                },
                None => SpawnError::NotFound {
                    program,
                    hint: String::new(),
                },
            },
            _ => SpawnError::system(step, &io::Error::from_raw_os_error(errno)),
        }
    }

    pub(super) fn directory(cwd: &Path, errno: i32) -> SpawnError {
        let reason = match errno {
            libc::ENOENT => "does not exist".to_owned(),
            libc::ENOTDIR => "is not a directory".to_owned(),
            libc::EACCES => "may not be entered".to_owned(),
            errno => io::Error::from_raw_os_error(errno).to_string(),
        };
        SpawnError::Directory {
            cwd: cwd.to_owned(),
            reason,
        }
    }
}

/// The part of the path that is closed to the user.
fn closed(path: &Path, user: &Credentials) -> String {
    match user.first_closed(path) {
        Some(part) => format!("{} is closed to it", part.display()),
        // An access list, a security module, a mount with noexec, or its interpreter.
        None => io::Error::from_raw_os_error(libc::EACCES).to_string(),
    }
}

/// The program named in a script's `#!` line.
fn interpreter(file: &Path) -> Option<String> {
    let mut head = [0; 256];
    let len = File::open(file).ok()?.read(&mut head).ok()?;
    let line = head
        .get(..len)?
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let line = String::from_utf8_lossy(line);
    // A file written on Windows asks for "/bin/sh\r": the carriage return must be visible.
    let word = line.trim_matches([' ', '\t']).split([' ', '\t']).next()?;
    Some(word.escape_debug().to_string())
}
