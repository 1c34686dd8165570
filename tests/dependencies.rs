//! The dependency audit that needs nothing but the lock file and the crates themselves: licences and
//! sources. (Security advisories are in a database outside crates.io; `cargo audit` reads it.)

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Every dependency has to offer one of these: what deny.toml says to cargo-deny.
fn licences() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    let text = std::fs::read_to_string(path).expect("deny.toml");
    let deny: toml::Table = text.parse().expect("deny.toml is TOML");
    let allowed = deny["licenses"]["allow"].as_array().expect("a list");
    allowed
        .iter()
        .map(|licence| licence.as_str().expect("a name").to_owned())
        .collect()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// Whether an SPDX expression can be met with these licences: any side of an OR, every side of an AND.
fn acceptable(licences: &[String], expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    plain.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|offered| licences.iter().any(|licence| licence == offered.trim()))
    })
}

#[test]
fn every_dependency_has_a_licence_that_we_can_ship() {
    let licences = licences();
    let unfit: Vec<String> = packages()
        .iter()
        .filter(|package| !acceptable(&licences, package["license"].as_str().unwrap_or_default()))
        .map(|package| {
            format!(
                "{} {}: {}",
                package["name"], package["version"], package["license"]
            )
        })
        .collect();
    assert!(unfit.is_empty(), "{unfit:#?}");
}

#[test]
fn every_dependency_comes_from_crates_io() {
    let sources: BTreeSet<String> = packages()
        .iter()
        .filter_map(|package| package["source"].as_str().map(str::to_owned))
        .collect();
    let strangers: Vec<_> = sources
        .iter()
        .filter(|s| !s.starts_with("registry+") || !s.ends_with("/crates.io-index"))
        .collect();
    assert!(
        !sources.is_empty() && strangers.is_empty(),
        "{strangers:#?}"
    );
}
