//! The control socket's side of the daemon: who may speak, and how much.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::warn;

use super::{Event, Events};
use crate::control::{self, Answer, Call, Failure, FailureCode};
use crate::sys::process;

/// A request has to arrive within this time: a stuck client costs a descriptor, not more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Each conversation holds a clone of `open` until its last answer is written.
pub async fn accept(listener: UnixListener, events: Events, open: mpsc::Sender<()>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (events, open) = (events.clone(), open.clone());
                tokio::spawn(async move {
                    converse(stream, events).await;
                    drop(open);
                });
            }
            Err(why) => {
                // Out of descriptors, most likely: others will end.
                warn!("cannot accept a client: {why}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, events: Events) {
    if !may_speak(&stream) {
        let answer = Answer::Failed(Failure::new(FailureCode::BadRequest, "this rsup belongs to another user"));
        let _ = send(&mut stream, &answer).await;
        return;
    }
    let call = match tokio::time::timeout(PATIENCE, receive(&mut stream)).await {
        Ok(Ok(call)) => call,
        Ok(Err(why)) => {
            let _ = send(&mut stream, &Answer::Failed(Failure::new(FailureCode::BadRequest, why))).await;
            return;
        }
        Err(_) => return,
    };
    let (answer, mut answers) = mpsc::unbounded_channel();
    if events.send(Event::Call { call, answer }).is_err() {
        return;
    }
    while let Some(answer) = answers.recv().await {
        // A client that went away or does not read loses its answers; the action goes on.
        match tokio::time::timeout(PATIENCE, send(&mut stream, &answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// The same user, or root.
fn may_speak(stream: &UnixStream) -> bool {
    let me = nix::unistd::geteuid().as_raw();
    process::peer_credentials(stream).is_ok_and(|peer| peer.uid == me || peer.uid == 0)
}

async fn receive(stream: &mut UnixStream) -> Result<Call, String> {
    let broken = |why: io::Error| format!("the request could not be read: {why}");
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let length = control::length(head).map_err(|why| why.to_string())?;
    // Grows as bytes arrive: a lying head costs nothing.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await.map_err(broken)?;
    if body.len() < length {
        return Err(format!("the request ended after {} of {length} bytes", body.len()));
    }
    Call::decode(&body)
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(&control::encode(answer)?).await
}
