use super::*;
use crate::cli::fixtures::{app, described, name, sample_views, worker};
use crate::control::{Failure, FailureCode, Outcome, WorkerEnv};
use crate::core::{AppPhase, OperationKind, WorkerPhase};

fn terminal(width: u16) -> Look {
    Look {
        color: false,
        terminal: true,
        width: Some(width),
    }
}

#[test]
fn list_in_a_pipe() {
    insta::assert_snapshot!(list(&sample_views(), Look::PLAIN));
}

#[test]
fn list_at_120_columns() {
    insta::assert_snapshot!(list(&sample_views(), terminal(120)));
}

#[test]
fn list_at_80_columns() {
    insta::assert_snapshot!(list(&sample_views(), terminal(80)));
}

#[test]
fn list_in_colour() {
    insta::assert_snapshot!(
        list(
            &sample_views(),
            Look {
                color: true,
                ..terminal(120)
            }
        )
        .replace('\x1b', "ESC")
    );
}

#[test]
fn the_table_fits_as_far_as_it_can() {
    for width in 0..130 {
        let text = list(&sample_views(), terminal(width));
        let table: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
        // Name and status remain, whatever happens.
        let widest = table.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= usize::from(width).max(26), "{width}: {widest}");
        assert_eq!(table.len(), 10);
    }
}

#[test]
fn list_of_nothing() {
    assert_eq!(list(&[], terminal(80)), "");
}

#[test]
fn words_of_an_app_cannot_steer_the_terminal() {
    let mut evil = app("evil", AppPhase::Errored, vec![]);
    evil.reason = Some("bad \x1b[2J\r\nerror: fake".into());
    evil.listen = vec!["x\x1b]0;title\x07".into()];
    assert!(!list(&[evil], Look::PLAIN).contains(['\x1b', '\r', '\x07']));
}

#[test]
fn description() {
    insta::assert_snapshot!(descriptions(&[described()], Look::PLAIN));
}

#[test]
fn description_on_a_terminal() {
    insta::assert_snapshot!(
        descriptions(
            &[described()],
            Look {
                color: true,
                ..terminal(80)
            }
        )
        .replace('\x1b', "ESC")
    );
}

#[test]
fn failure() {
    let mut failure = Failure::new(
        FailureCode::NotReady,
        "reload of api failed: worker 0 was not ready within 10 s\nGET /readiness answered 503",
    )
    .hint("the old workers go on; look at `rsup logs api`");
    failure.log = vec![
        "Error: connect ECONNREFUSED 127.0.0.1:5432".into(),
        "    at \x1b[90mnode:net:1494\x1b[39m".into(),
    ];
    insta::assert_snapshot!(report(&Report::from(&failure), Look::PLAIN));
}

fn done(kind: OperationKind) -> Outcome {
    let view = app(
        "api",
        AppPhase::Ready,
        vec![worker(0, WorkerPhase::Ready), worker(1, WorkerPhase::Ready)],
    );
    let view = if kind == OperationKind::Delete {
        None
    } else {
        Some(view)
    };
    Outcome {
        app: name("api"),
        kind,
        took_ms: 3_210,
        view,
        failure: None,
        untouched: None,
        notes: Vec::new(),
    }
}

#[test]
fn outcomes() {
    use OperationKind::*;
    let kinds = [Start, Stop, Restart, Reload, Scale, Delete];
    let text: String = kinds
        .iter()
        .map(|kind| outcome(&done(*kind), false, terminal(80)))
        .collect();
    insta::assert_snapshot!(text + &outcome(&done(Reload), true, terminal(80)));
}

#[test]
fn steps() {
    use crate::core::{Exit, Progress, Step};
    let text: String = [
        Step::Started,
        Step::Ready { after_ms: 512 },
        Step::Draining,
        Step::Stopping,
        Step::Killed,
        Step::Gone {
            exit: Exit::Signal {
                signal: 9,
                core_dumped: false,
            },
        },
        Step::Failed {
            reason: "not ready within 10 s".into(),
        },
    ]
    .into_iter()
    .map(|it| Progress {
        app: name("api"),
        instance: 0,
        revision: 4,
        pid: Some(123),
        step: it,
        done: 0,
        total: 2,
    })
    .map(|it| step(&it) + "\n")
    .collect();
    insta::assert_snapshot!(text);
}

#[test]
fn environment_can_be_read_by_a_shell() {
    let env = [
        ("A", "plain"),
        ("B", "two words"),
        ("C", "it's $HOME"),
        ("D", ""),
        ("E", "two\nlines"),
    ];
    let env = env
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let one = WorkerEnv {
        app: name("api"),
        instance: 0,
        pid: Some(123),
        env,
    };
    let two = WorkerEnv {
        instance: 1,
        pid: None,
        ..one.clone()
    };
    let all = [one, two].map(|worker| Environment::of(worker, true));
    insta::assert_snapshot!(environments(&all, Look::PLAIN));
}

#[test]
fn secrets_in_an_environment_are_hidden() {
    let env = [
        ("API_KEY", "s3cret"),
        ("DATABASE_URL", "postgres://u:s3cret@h/db"),
        ("PORT", "3001"),
        ("RSUP_APP", "api"),
    ];
    let env = env
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let worker = Environment::of(
        WorkerEnv {
            app: name("api"),
            instance: 0,
            pid: Some(123),
            env,
        },
        false,
    );
    let json = serde_json::to_string(&worker).unwrap();
    assert_eq!(
        json,
        r#"{"app":"api","instance":0,"pid":123,"env":{"API_KEY":null,"DATABASE_URL":null,"PORT":"3001","RSUP_APP":"api"}}"#
    );
    let text = environments(&[worker], Look::PLAIN);
    assert_eq!(
        text,
        "# API_KEY=***\n# DATABASE_URL=***\nPORT=3001\nRSUP_APP=api\n# 2 values hidden; --show-values shows them\n"
    );
}
