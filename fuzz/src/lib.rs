//! What several targets ask of what they find.

pub mod story;

use rsup::config::{AppSpec, Problem};

/// Every problem can be shown, and points into its own text.
pub fn sayable<'a>(problems: impl Iterator<Item = &'a Problem>) {
    for problem in problems {
        assert!(problem.fits(), "{:?} points outside its text", problem.message());
        assert!(!problem.message().is_empty());
        let finding = problem.finding();
        assert!(finding.line != Some(0) && finding.column != Some(0));
        assert!(!problem.render(false).is_empty());
    }
}

/// The rest of the program can rely on it, and it comes out of the control socket and the state file as it went in.
pub fn travels(spec: &AppSpec) {
    spec.sound().unwrap_or_else(|why| panic!("accepted, and yet: {why}"));
    let text = serde_json::to_string(spec).expect("a spec can be written");
    assert_eq!(&serde_json::from_str::<AppSpec>(&text).expect("and read"), spec);
}
