//! The HTTP side: one thread, few connections, one request on each.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::ask::{Ask, Question};
use super::connections::{Connections, Entry};
use super::metrics;
use crate::daemon::{Event, Events};

/// Connections at the same time; for more, silent ones are ended: see [`Connections`].
const MOST: usize = 64;
/// Questions of probes in the main loop's queue at the same time, and those for metrics, which take longer.
const PROBES: usize = 4;
const METRICS: usize = 1;
/// How long the main loop, and then the log thread, may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The head of a request has to arrive within this time.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// A whole connection, answer included.
const TIME: Duration = Duration::from_secs(15);
/// Bytes of a request's head. hyper takes no less.
const HEAD: usize = 8 << 10;
const HEADERS: usize = 64;
/// Metrics cost a look at every worker's process: figures of this age are still used.
const FRESH: Duration = Duration::from_millis(200);

const OPENMETRICS: &str = "application/openmetrics-text";
const PAGES: [&str; 4] = ["/health", "/readiness", "/liveness", "/metrics"];

/// The listener and its thread, which ends when this is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to listen.
    ///
    /// # Errors
    /// As bind(2); when no thread is available.
    pub fn start(address: SocketAddr, events: Events) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    _ = accept(listener, events) => {}
                }
            });
        };
        let thread = thread::Builder::new()
            .name("rsup-admin".into())
            .spawn(serve)?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    /// The address is free afterwards. The thread never blocks, so this is quick.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Site {
    events: Events,
    probes: Arc<Semaphore>,
    for_metrics: Arc<Semaphore>,
    /// The name of this machine, by which a scraper may know it.
    host: Option<String>,
    metrics: Mutex<Option<(Instant, Bytes)>>,
}

type Page = Response<Full<Bytes>>;

/// The main loop did not answer in time.
#[derive(Debug)]
struct Stuck;

async fn accept(listener: StdListener, events: Events) {
    // It was made non-blocking above, the only thing that can fail here.
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let site = Arc::new(Site {
        events,
        probes: Arc::new(Semaphore::new(PROBES)),
        for_metrics: Arc::new(Semaphore::new(METRICS)),
        host: nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok()),
        metrics: Mutex::default(),
    });
    let connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let entry = connections.enter(peer.ip().to_canonical(), MOST).await;
                let (number, site) = (entry.number(), site.clone());
                let task = tokio::spawn(async move {
                    let _ = timeout(TIME, connection(stream, &site, &entry)).await;
                });
                Entry::served_by(&connections, number, task.abort_handle());
            }
            // Most likely no descriptor is free.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(stream: TcpStream, site: &Site, entry: &Entry) {
    let service = service_fn(|request| {
        entry.has_asked();
        async move { Ok::<_, Infallible>(site.respond(&request).await) }
    });
    // An error is the client's: it disconnected, or did not speak HTTP. It cannot be reported to
    // the client.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Site {
    async fn respond(&self, request: &Request<Incoming>) -> Page {
        if !self.is_meant(request) {
            let why = "ask by an address of this machine, localhost or its host name: a page that a browser shows under another name may not ask";
            return page(StatusCode::MISDIRECTED_REQUEST, &json!({ "error": why }));
        }
        let path = request.uri().path();
        if !PAGES.contains(&path) {
            return page(
                StatusCode::NOT_FOUND,
                &json!({ "error": "no such page", "pages": PAGES }),
            );
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = page(
                StatusCode::METHOD_NOT_ALLOWED,
                &json!({ "error": "only GET and HEAD" }),
            );
            refusal
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let answer = match path {
            "/liveness" => self
                .ask(&self.probes, Question::Health)
                .await
                .map(|_| page(StatusCode::OK, &json!({ "alive": true }))),
            "/health" => self.health().await,
            "/readiness" => self
                .ask(&self.probes, Question::Readiness)
                .await
                .map(|readiness| {
                    let status = if readiness.ready {
                        StatusCode::OK
                    } else {
                        StatusCode::SERVICE_UNAVAILABLE
                    };
                    page(status, &readiness)
                }),
            _ => self.metrics(request.headers()).await,
        };
        answer.unwrap_or_else(|Stuck| {
            let why = format!(
                "rsup's main loop does not answer within {} s",
                PATIENCE.as_secs()
            );
            page(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": why }))
        })
    }

    /// Whether the request names this machine. A name that another domain gave to this address (DNS rebinding) would let
    /// their page read the answer in a browser. A request without a name comes from no browser (RFC 9112, 3.2).
    fn is_meant(&self, request: &Request<Incoming>) -> bool {
        let mut names = request.headers().get_all(HOST).iter();
        let name = match names.next().map(HeaderValue::to_str) {
            None => return true,
            Some(Ok(name)) => name,
            Some(Err(_)) => return false,
        };
        names.next().is_none() && names_this_machine(name, self.host.as_deref())
    }

    /// Asks the main loop.
    async fn ask<T>(
        &self,
        places: &Arc<Semaphore>,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, Stuck> {
        let asked = async {
            let place = places.clone().acquire_owned().await.map_err(|_| Stuck)?;
            let (answer, answered) = oneshot::channel();
            self.events
                .send(Event::Ask(Ask {
                    question: question(answer),
                    place,
                }))
                .map_err(|_| Stuck)?;
            answered.await.map_err(|_| Stuck)
        };
        timeout(PATIENCE, asked).await.unwrap_or(Err(Stuck))
    }

    async fn health(&self) -> Result<Page, Stuck> {
        let health = self.ask(&self.probes, Question::Health).await?;
        let logs = timeout(PATIENCE, health.logs)
            .await
            .ok()
            .and_then(Result::ok);
        let status = if logs.is_some() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = json!({
            "healthy": logs.is_some(),
            "why": logs.is_none().then(|| format!("rsup's log thread does not answer within {} s", PATIENCE.as_secs())),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": health.uptime.as_secs(),
            "apps": health.apps,
            "troubles": health.troubles,
            "lost_messages": health.lost_messages,
            "log_lost_bytes": logs.map(|stats| stats.lost_bytes),
        });
        Ok(page(status, &body))
    }

    async fn metrics(&self, headers: &HeaderMap) -> Result<Page, Stuck> {
        // One look serves all clients that wait for one.
        let mut kept = timeout(PATIENCE, self.metrics.lock())
            .await
            .map_err(|_| Stuck)?;
        let text = match kept.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            Some((_, text)) => text.clone(),
            None => {
                let mut facts = self.ask(&self.for_metrics, Question::Metrics).await?;
                let logs = timeout(PATIENCE, &mut facts.logs)
                    .await
                    .ok()
                    .and_then(Result::ok);
                // Writing to a String cannot fail.
                let text = Bytes::from(metrics::render(*facts, logs).unwrap_or_default());
                *kept = Some((Instant::now(), text.clone()));
                text
            }
        };
        let asks_for = |value: &HeaderValue| {
            value
                .to_str()
                .is_ok_and(|value| value.contains(OPENMETRICS))
        };
        let kind = if headers.get_all(ACCEPT).iter().any(asks_for) {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        };
        Ok(response(StatusCode::OK, kind, text))
    }
}

/// Whether a `Host` (RFC 9110, 7.2) is an address, `localhost` or this name, each with or without a port.
fn names_this_machine(host: &str, own: Option<&str>) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || own.is_some_and(|own| own.eq_ignore_ascii_case(name))
}

fn page(status: StatusCode, body: &impl serde::Serialize) -> Page {
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    response(status, "application/json", text.into())
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Page {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use tokio::sync::mpsc;

    use super::*;

    /// A port that is free now.
    fn address() -> SocketAddr {
        let listener = StdListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("its address")
    }

    fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        // The other side may close before all of it is sent.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn a_main_loop_that_is_stuck_is_told_so() {
        let (events, mut inbox) = mpsc::unbounded_channel();
        let server = Server::start(address(), events).expect("a listener");
        let ask = |page: &str| {
            exchange(
                server.address(),
                format!("GET {page} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
            )
        };
        thread::scope(|scope| {
            // More than there are places in the queue, so that some never get one.
            let answers: Vec<_> = PAGES
                .iter()
                .cycle()
                .take(16)
                .map(|page| scope.spawn(|| ask(page)))
                .collect();
            for answer in answers {
                let answer = answer.join().expect("an answer");
                assert!(
                    answer.starts_with("HTTP/1.1 503 ")
                        && answer.contains("does not answer within 2 s"),
                    "{answer}"
                );
            }
        });
        let mut asked = 0;
        while inbox.try_recv().is_ok() {
            asked += 1;
        }
        assert!(
            (1..=PROBES + METRICS).contains(&asked),
            "{asked} questions in the queue of a loop that is stuck"
        );
    }

    #[test]
    fn what_is_not_http_or_too_much_of_it_is_turned_away() {
        let (events, _inbox) = mpsc::unbounded_channel();
        let server = Server::start(address(), events).expect("a listener");
        let huge = format!(
            "GET /health HTTP/1.1\r\nX: {}\r\n\r\n",
            "x".repeat(64 << 10)
        );
        assert!(exchange(server.address(), huge.as_bytes()).starts_with("HTTP/1.1 431 "));
        let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(200));
        assert!(exchange(server.address(), many.as_bytes()).starts_with("HTTP/1.1 431 "));
        assert!(exchange(server.address(), &[0xff; 4096]).starts_with("HTTP/1.1 400 "));
        assert!(
            exchange(
                server.address(),
                b"DELETE /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            .starts_with("HTTP/1.1 405 ")
        );
        assert!(
            exchange(
                server.address(),
                b"GET /etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            .starts_with("HTTP/1.1 404 ")
        );
    }

    #[test]
    fn another_name_is_turned_away() {
        for (host, meant) in [
            ("127.0.0.1", true),
            ("127.0.0.1:9090", true),
            ("[::1]:9090", true),
            ("localhost", true),
            ("LocalHost:9090", true),
            ("web1", true),
            ("web1:9090", true),
            ("web1.example.com", false),
            ("example.com:9090", false),
            ("localhost.example.com", false),
            ("", false),
        ] {
            assert_eq!(names_this_machine(host, Some("web1")), meant, "{host}");
        }
        let (events, _inbox) = mpsc::unbounded_channel();
        let server = Server::start(address(), events).expect("a listener");
        let ask = |head: &str| exchange(server.address(), head.as_bytes());
        let other = ask("GET /nothing HTTP/1.1\r\nHost: example.com\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 421 "), "{other}");
        let twice = ask("GET /nothing HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\n\r\n");
        assert!(twice.starts_with("HTTP/1.1 421 "), "{twice}");
        assert!(ask("GET /nothing HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404 "));
    }

    #[test]
    fn silent_clients_keep_no_other_from_its_answer() {
        let (events, _inbox) = mpsc::unbounded_channel();
        let server = Server::start(address(), events).expect("a listener");
        let silent: Vec<TcpStream> = (0..400)
            .map(|_| TcpStream::connect(server.address()).expect("connect"))
            .collect();
        let asked = Instant::now();
        let answer = exchange(
            server.address(),
            b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
        );
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(asked.elapsed() < HEAD_TIME, "it waited for silent clients");
        drop(silent);
    }

    #[test]
    fn its_end_frees_the_address_whoever_is_connected() {
        let (events, _inbox) = mpsc::unbounded_channel();
        let server = Server::start(address(), events.clone()).expect("a listener");
        let address = server.address();
        let idle: Vec<TcpStream> = (0..MOST + 5)
            .map(|_| TcpStream::connect(address).expect("connect"))
            .collect();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
        drop(Server::start(address, events).expect("the address is free"));
        drop(idle);
    }
}
