# What one types while working on rsup. `just` lists it; CONTRIBUTING.md says more.

# Lists the recipes.
default:
    @just --list

# Format, lints and documentation, as CI has them.
check:
    cargo fmt --all --check
    cargo clippy --locked --all-targets -- --deny warnings
    cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz
    RUSTDOCFLAGS="--deny warnings --allow rustdoc::private_intra_doc_links" cargo doc --locked --no-deps --document-private-items

# Tests: all, or one binary of tests/ and those whose name has FILTER in it (`just test reloads current`).
test binary="" *filter="":
    cargo test {{ if binary == "" { "" } else if binary == "lib" { "--lib" } else { "--test " + binary } }} -- {{ filter }}

# Longer random stories of the simulated world.
sim cases="4000":
    PROPTEST_CASES={{ cases }} cargo test --lib core::sim::random

# Takes today's output for the right one: snapshots of messages, and man pages. Read the diff.
accept:
    INSTA_UPDATE=always cargo test --lib --test cli
    RSUP_UPDATE_MAN=1 cargo test --test man

# Kills, reloads and load at random, with every request counted.
chaos time="1m" seed="1":
    cargo build --bin rsup --example chaos
    target/debug/examples/chaos --rsup target/debug/rsup --time {{ time }} --seed {{ seed }}

# One of benches/ (`just bench reload`): benches/README.md says what each shows.
bench name:
    cargo bench --bench {{ name }}

# Everything that has to hold before a change lands; installs what it needs on Debian, as root.
ci:
    .ci/run
