//! The man pages in `man/` are those that the command line describes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each page by its file name.
fn pages() -> BTreeMap<String, Vec<u8>> {
    let mut root = rsup::cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = BTreeMap::new();
    pages.insert("rsup.1".to_owned(), page(root.clone()));
    for verb in root.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages.insert(format!("rsup-{}.1", verb.get_name()), page(verb.clone()));
    }
    pages
}

fn page(command: clap::Command) -> Vec<u8> {
    // No date: a page must be the same whenever it is made.
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .date("")
        .manual("rsup")
        .render(&mut text)
        .unwrap();
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man")
}

#[test]
fn man_pages_are_current() {
    let wanted = pages();
    if std::env::var_os("RSUP_UPDATE_MAN").is_some() {
        fs::create_dir_all(folder()).unwrap();
        for name in present()
            .into_iter()
            .filter(|name| !wanted.contains_key(name))
        {
            fs::remove_file(folder().join(name)).unwrap();
        }
        for (name, text) in &wanted {
            fs::write(folder().join(name), text).unwrap();
        }
    }
    let renew = "renew them: RSUP_UPDATE_MAN=1 cargo test --test man";
    for (name, text) in &wanted {
        let found = fs::read(folder().join(name)).unwrap_or_default();
        assert!(
            found == *text,
            "man/{name} is not what `rsup --help` says; {renew}"
        );
    }
    let extra: Vec<_> = present()
        .into_iter()
        .filter(|name| !wanted.contains_key(name))
        .collect();
    assert!(
        extra.is_empty(),
        "man/ has pages of verbs that are gone: {extra:?}; {renew}"
    );
}

/// The pages of section 1 that are there; others are written by hand.
fn present() -> Vec<String> {
    let entries = fs::read_dir(folder()).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".1"))
        .collect()
}
