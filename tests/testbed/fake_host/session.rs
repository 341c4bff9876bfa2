//! One SSH connection to a light host: who may log in, and a task for each session on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use dormouse::spool::verb::Answer;
use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelWriteHalf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::command::{self, Command};
use super::machine::{Done, Machine};

/// Most bytes a command may be given.
const MOST_INPUT: usize = 64 << 20;

/// Serves a connection until either side ends it or the host goes away.
pub async fn serve(
    config: Arc<Config>,
    stream: TcpStream,
    machine: Arc<Machine>,
    client: PublicKey,
    up: CancellationToken,
) {
    let connection = Connection { machine, client, sessions: Arc::new(AtomicUsize::new(0)), up: up.clone() };
    let talk = async {
        // How a connection ends is the client's to judge.
        if let Ok(session) = russh::server::run_stream(config, stream, connection).await {
            let handle = session.handle();
            tokio::select! {
                _ = session => {}
                () = up.cancelled() => {
                    let _ = handle.disconnect(russh::Disconnect::ByApplication, String::new(), String::new()).await;
                }
            }
        }
    };
    up.run_until_cancelled(talk).await;
}

struct Connection {
    machine: Arc<Machine>,
    client: PublicKey,
    sessions: Arc<AtomicUsize>,
    up: CancellationToken,
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let known = key.public_key.key_data() == self.client.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let place = Place::take(&self.sessions, self.machine.spec.max_sessions);
        let Some(place) = place else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        reply.accept().await;
        let (machine, up) = (Arc::clone(&self.machine), self.up.clone());
        tokio::spawn(async move {
            up.run_until_cancelled(run(machine, channel)).await;
            drop(place);
        });
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
}

/// One of the sessions a connection may have.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(sessions: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let free = |taken: usize| (taken < most).then_some(taken + 1);
        sessions.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).ok()?;
        Some(Self(Arc::clone(sessions)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads one command with its input, and does it.
async fn run(machine: Arc<Machine>, channel: Channel<Msg>) {
    let (mut read, write) = channel.split();
    let mut line = None;
    let mut input = Vec::new();
    loop {
        match read.wait().await {
            Some(ChannelMsg::Exec { command, .. }) => {
                line = Some(String::from_utf8_lossy(&command).into_owned())
            }
            Some(ChannelMsg::Data { data }) if input.len() + data.len() <= MOST_INPUT => {
                input.extend_from_slice(&data);
            }
            Some(ChannelMsg::Eof) => break,
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
    let Some(line) = line else { return };
    let listening = async {
        // What a client still says is not for the command; that it leaves is.
        while !matches!(read.wait().await, Some(ChannelMsg::Close) | None) {}
    };
    let doing = async {
        let code = match perform(&machine, &line, &input, &write).await {
            Ok(code) => code,
            Err(error) => {
                machine.violate(format!("{line}: {error:#}"));
                let _ = write.extended_data_bytes(1, Bytes::from(format!("{error:#}\n"))).await;
                127
            }
        };
        // A client that is gone needs no end.
        let _ = write.exit_status(code).await;
        let _ = write.eof().await;
        let _ = write.close().await;
    };
    tokio::select! {
        () = doing => {}
        () = listening => {}
    }
}

async fn perform(machine: &Machine, line: &str, input: &[u8], out: &ChannelWriteHalf<Msg>) -> Result<u32> {
    match command::read(line)? {
        Command::Probe => {
            let text = format!("Linux\n{}\n0\nno\n/root\n", std::env::consts::ARCH);
            out.data_bytes(Bytes::from(text)).await?;
            Ok(0)
        }
        Command::Present { path } => Ok(u32::from(!machine.is_present(&path))),
        Command::Install { path, sha256 } => Ok(u32::from(!machine.install(path, &sha256, input))),
        Command::Verb(verb) => {
            tokio::time::sleep(machine.spec.delay).await;
            match machine.call(&verb, input)? {
                Done::Stream(stream) => {
                    // A client that is gone ends the stream and says nothing about the job.
                    if let Err(error) = stream.send(out).await
                        && !error.is::<russh::Error>()
                    {
                        return Err(error);
                    }
                }
                Done::Answer(answer) if ["start", "attach"].contains(&verb.name.as_str()) => {
                    let mut frame = Vec::new();
                    dormouse::spool::frame::Frame::Answer(answer).encode(&mut frame)?;
                    out.data_bytes(Bytes::from(frame)).await?;
                }
                Done::Answer(answer) => print(out, &answer).await?,
            }
            Ok(0)
        }
    }
}

async fn print(out: &ChannelWriteHalf<Msg>, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(out.data_bytes(Bytes::from(line)).await?)
}
