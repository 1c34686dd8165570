//! The built-in sample web app: an ordinary HTTP server that knows nothing of rsup. It binds its
//! port itself, says when it is ready, and on SIGTERM finishes what it has accepted.
//!
//! | environment | |
//! |---|---|
//! | `PORT` | the port, on 0.0.0.0; 3000 by default |
//! | `APP_VERSION` | the `version` in its answers; `v1` by default |
//! | `WARM_MS` | `/readiness` answers 503 so long; 300 by default |
//! | `NEVER_READY=1` | `/readiness` answers 503 for ever |
//! | `CRASH_AT_START=1` | says why on stderr and exits with 3 |
//! | `IGNORE_SIGTERM=1` | goes on as if nothing had come |
//! | `DROP_AT_STOP=1` | on SIGTERM resets its connections, answered or not |
//! | `IDLE_MS` | after SIGTERM an idle keep-alive connection lives so long for one more request, which is answered with `Connection: close`; 1000 by default, 0: it is closed at once, as most servers do |
//!
//! | path | |
//! |---|---|
//! | `/`, `/health` | `{"status":"healthy","pid":N,"version":"v1"}` |
//! | `/readiness` | 200 when warm and not told to stop, else 503 |
//! | `/liveness` | 200; 503 once `/wedge` was asked for |
//! | `/slow?ms=N` | answers after N ms |
//! | `/leak?mb=N` | allocates N MiB more and keeps them |
//! | `/log?n=N` | writes N lines to stdout |
//! | `/crash` | exits with 3, without an answer |

#![expect(
    clippy::exit,
    clippy::print_stderr,
    reason = "an app of its own, which crashes when it is told to"
)]

use std::convert::Infallible;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

/// How long a connection may stay without its first request once SIGTERM has come. Its client has
/// connected, so a request is on its way.
const FIRST_REQUEST: Duration = Duration::from_secs(2);

/// Runs the app until SIGTERM and the last answer.
///
/// # Errors
/// Where the runtime, the signal handler or the listener cannot be set up.
#[expect(
    clippy::exit,
    clippy::print_stderr,
    reason = "it crashes when it is asked to"
)]
pub fn run() -> io::Result<()> {
    if flag("CRASH_AT_START") {
        eprintln!("sample app: CRASH_AT_START is set: cannot connect to the database");
        std::process::exit(3);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve())
}

struct App {
    pid: u32,
    version: String,
    ready_at: Instant,
    never_ready: bool,
    drop_at_stop: bool,
    idle: Duration,
    stopping: AtomicBool,
    wedged: AtomicBool,
    leaked: Mutex<Vec<Vec<u8>>>,
}

async fn serve() -> io::Result<()> {
    let warm = Duration::from_millis(variable("WARM_MS").unwrap_or(300));
    let app = Arc::new(App {
        pid: std::process::id(),
        version: variable("APP_VERSION").unwrap_or_else(|| "v1".into()),
        ready_at: Instant::now() + warm,
        never_ready: flag("NEVER_READY"),
        drop_at_stop: flag("DROP_AT_STOP"),
        idle: Duration::from_millis(variable("IDLE_MS").unwrap_or(1000)),
        stopping: AtomicBool::new(false),
        wedged: AtomicBool::new(false),
        leaked: Mutex::default(),
    });
    // Before the listener: a signal that comes as early as the first request must find its handler.
    let mut sigterm = signal(SignalKind::terminate())?;
    let port = variable("PORT").unwrap_or(3000);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    log(
        &app,
        format_args!("{} listening on {}", app.version, listener.local_addr()?),
    );

    // Every connection holds a receiver: when the last is gone, so is the last connection.
    let (stop, stopped) = watch::channel(false);
    loop {
        tokio::select! {
            biased;
            _ = sigterm.recv() => {
                if flag("IGNORE_SIGTERM") {
                    log(&app, "SIGTERM: ignored");
                    continue;
                }
                break;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(connection(stream, app.clone(), stopped.clone()));
                }
                // A client that is gone already, or no more file descriptors: both pass.
                Err(_) => sleep(Duration::from_millis(5)).await,
            },
        }
    }
    drop(listener);
    app.stopping.store(true, Ordering::Relaxed);
    log(&app, "SIGTERM: no new connections, finishing the open ones");
    stop.send_replace(true);
    drop(stopped);
    stop.closed().await;
    log(&app, "done");
    Ok(())
}

/// Serves one connection to its end.
///
/// hyper's own graceful shutdown drops a connection on which nothing was read yet, and its request
/// may be in flight. So once the app is told to stop, the connection first gets the time for a
/// request; whichever comes is answered with `Connection: close`, and ends it.
async fn connection(stream: TcpStream, app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    let socket = if app.drop_at_stop {
        stream.as_fd().try_clone_to_owned().ok()
    } else {
        None
    };
    let requests = AtomicU64::new(0);
    let service = service_fn(|request| {
        requests.fetch_add(1, Ordering::Relaxed);
        respond(&app, request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .half_close(true) // a client that has said all it has to say still wants its answer
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    // An error is the client's: it went away, or spoke no HTTP. Nobody is left to tell.
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    if let Some(socket) = socket {
        drop(SockRef::from(&socket).set_linger(Some(Duration::ZERO)));
        return;
    }
    let patience = match requests.load(Ordering::Relaxed) {
        0 => FIRST_REQUEST,
        _ => app.idle,
    };
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = sleep(patience) => {}
    }
    served.as_mut().graceful_shutdown(); // closes if idle; else ends after the answer under way
    let _ = served.await;
}

async fn respond(
    app: &App,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query();
    let (status, body) = match request.uri().path() {
        "/" | "/health" => (StatusCode::OK, app.health("healthy")),
        "/readiness" => {
            let stopping = app.stopping.load(Ordering::Relaxed);
            match !app.never_ready && !stopping && Instant::now() >= app.ready_at {
                true => (StatusCode::OK, app.health("ready")),
                false => (StatusCode::SERVICE_UNAVAILABLE, app.health("not ready")),
            }
        }
        "/liveness" => match app.wedged.load(Ordering::Relaxed) {
            false => (StatusCode::OK, app.health("alive")),
            true => (StatusCode::SERVICE_UNAVAILABLE, app.health("wedged")),
        },
        "/wedge" => {
            app.wedged.store(true, Ordering::Relaxed);
            (StatusCode::OK, app.health("wedged"))
        }
        "/slow" => {
            sleep(Duration::from_millis(
                parameter(query, "ms").unwrap_or(1000),
            ))
            .await;
            (StatusCode::OK, app.health("slow"))
        }
        "/leak" => {
            let mib = parameter(query, "mb").unwrap_or(1).min(4096_usize);
            // Not zeros: those would be pages that exist only once they are written.
            let block = vec![0xA5; mib << 20];
            app.leaked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(block);
            (StatusCode::OK, app.health("leaking"))
        }
        "/log" => {
            let lines = parameter(query, "n").unwrap_or(1).min(10_000_000_u64);
            let mut out = io::BufWriter::new(io::stdout().lock());
            for line in 1..=lines {
                if writeln!(out, "sample app {}: line {line} of {lines}", app.pid).is_err() {
                    break; // nobody reads
                }
            }
            let _ = out.flush();
            (StatusCode::OK, app.health("logged"))
        }
        "/crash" => {
            eprintln!("sample app {}: /crash", app.pid);
            std::process::exit(3);
        }
        _ => (StatusCode::NOT_FOUND, app.health("not found")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if app.stopping.load(Ordering::Relaxed) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

impl App {
    fn health(&self, status: &str) -> String {
        let version = serde_json::Value::from(self.version.as_str());
        format!(
            "{{\"status\":\"{status}\",\"pid\":{},\"version\":{version}}}\n",
            self.pid
        )
    }
}

/// A line on stdout. Unlike `println!` it survives that nobody reads.
fn log(app: &App, what: impl Display) {
    let _ = writeln!(io::stdout().lock(), "sample app {}: {what}", app.pid);
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn flag(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| v == "1")
}

fn parameter<T: FromStr>(query: Option<&str>, name: &str) -> Option<T> {
    query?
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        .and_then(|v| v.parse().ok())
}
