use clap::Parser;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_verb_has_an_example() {
    for verb in command()
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
    {
        assert!(verb.get_about().is_some(), "{}", verb.get_name());
        assert!(verb.get_after_long_help().is_some(), "{}", verb.get_name());
    }
}

#[test]
fn familiar_names_work() {
    let verb = |words: &[&str]| {
        Cli::try_parse_from(std::iter::once(&"rsup").chain(words)).map(|cli| cli.verb)
    };
    for alias in ["list", "ls", "ps", "status"] {
        assert!(matches!(verb(&[alias]), Ok(Verb::List(_))), "{alias}");
    }
    for alias in ["describe", "show", "info"] {
        assert!(
            matches!(verb(&[alias, "api"]), Ok(Verb::Describe(_))),
            "{alias}"
        );
    }
    for alias in ["delete", "del", "rm"] {
        assert!(
            matches!(verb(&[alias, "api"]), Ok(Verb::Delete(_))),
            "{alias}"
        );
    }
    assert!(matches!(verb(&["scale", "api", "-1"]), Ok(Verb::Scale(_))));
    assert!(matches!(
        verb(&["logs", "-f", "-n", "3"]),
        Ok(Verb::Logs(_))
    ));
    assert!(verb(&["stop"]).is_err());
}
