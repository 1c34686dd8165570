//! Programs that put themselves into the background, and what keeps each in the foreground: the end of the process
//! that rsup has started is the worker's end.

use std::path::Path;

/// By the name of the program, each by its manual; an entry is for names with a version behind it as well
/// (`php-fpm8.2`).
static KNOWN: &[(&[&str], &str)] = &[
    (
        &["nginx", "openresty"],
        "write `daemon off;` into its configuration, or the arguments `-g \"daemon off;\"`",
    ),
    (
        &["apache2", "httpd", "apachectl", "apache2ctl"],
        "start it with `-DFOREGROUND`",
    ),
    (&["php-fpm"], "start it with `--nodaemonize`"),
    (
        &["gunicorn", "unicorn"],
        "start it without `--daemon` (`-D`), and without `daemon` in its configuration",
    ),
    (&["uwsgi"], "start it without `daemonize`"),
    (
        &["redis-server", "valkey-server"],
        "start it with `--daemonize no`",
    ),
    (
        &["haproxy"],
        "start it without `-D`, and without `daemon` in its configuration",
    ),
    (&["lighttpd"], "start it with `-D`"),
    (&["caddy"], "write `caddy run` instead of `caddy start`"),
    (&["memcached", "mosquitto"], "start it without `-d`"),
    (&["varnishd"], "start it with `-F`"),
    (&["squid"], "start it with `--foreground`"),
    (&["sshd"], "start it with `-D`"),
    (&["dnsmasq"], "start it with `--keep-in-foreground`"),
    (&["mongod"], "start it without `--fork`"),
    (&["pg_ctl"], "start `postgres` itself"),
    (&["celery"], "start it without `--detach`"),
    (&["supervisord"], "start it with `--nodaemon`"),
    (&["twistd"], "start it with `--nodaemon`"),
    (&["pm2"], "let rsup start the script itself"),
    (&["catalina.sh", "startup.sh"], "write `catalina.sh run`"),
];

/// How a program of this name stays in the foreground.
pub fn how(program: &str) -> String {
    let named = |known: &&str| {
        program
            .strip_prefix(known)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '-'))
    };
    let known = KNOWN.iter().find(|(names, _)| names.iter().any(named));
    known.map_or_else(
        || "start it without what sends it into the background (`--daemon`, `-d`, a `&`)".into(),
        |(_, how)| (*how).into(),
    )
}

/// What a command runs: behind an interpreter, the module or the script.
pub fn program(command: &[String]) -> String {
    let name = |word: &String| {
        let path = Path::new(word);
        path.file_name()
            .map_or_else(|| word.clone(), |name| name.to_string_lossy().into_owned())
    };
    let Some((first, rest)) = command.split_first() else {
        return String::new();
    };
    let first = name(first);
    let interprets = [
        "python", "pypy", "node", "ruby", "perl", "php", "sh", "bash", "dash",
    ];
    let bare = first.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    if !interprets.contains(&bare) {
        return first;
    }
    if let Some(module) = rest.iter().position(|word| word == "-m") {
        return rest.get(module + 1).cloned().unwrap_or(first);
    }
    if bare.ends_with("sh") && rest.first().is_some_and(|word| word == "-c") {
        // Which of its commands it was, the shell alone knows.
        return first;
    }
    let script = rest.iter().find(|word| !word.starts_with('-'));
    script.map_or(first, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_name() {
        for (command, named, says) in [
            ("/usr/sbin/nginx -c x", "nginx", "daemon off;"),
            (
                "python3.11 -m gunicorn --daemon app:app",
                "gunicorn",
                "--daemon",
            ),
            ("python3 /srv/bin/gunicorn -D app:app", "gunicorn", "-D"),
            ("php-fpm8.2", "php-fpm8.2", "--nodaemonize"),
            ("uwsgi_python3 --daemonize x", "uwsgi_python3", "daemonize"),
            ("node --x server.js", "server.js", "`&`"),
            ("sh -c serve", "sh", "`&`"),
            ("nginx-exporter", "nginx-exporter", "`&`"),
        ] {
            let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
            assert_eq!(program(&words), named, "{command}");
            assert!(how(named).contains(says), "{command}: {}", how(named));
        }
    }
}
