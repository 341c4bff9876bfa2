//! TLS before a server that has none: certificates made for one test, and a relay that takes TLS off.
//!
//! The certificates of a relay, and whether clients have to show one, can be changed while it runs: new handshakes see the
//! change, connections that are open do not.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An authority made for one test.
pub struct Authority {
    folder: PathBuf,
}

/// A certificate of it, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// Makes one, with its files in a folder of its own.
    pub async fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let authority = Self { folder: folder.to_owned() };
        let subject = format!("/CN=authority of {}", folder.file_name().unwrap_or_default().display());
        self_signed(folder, "ca", &["-days", "2", "-subj", &subject]).await?;
        Ok(authority)
    }

    /// Its own certificate.
    pub fn certificate(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("ca.crt"))?)
    }

    /// Issues a certificate: of a server on 127.0.0.1, and good for a client.
    pub async fn issue(&self, name: &str) -> Result<Issued> {
        let folder = &self.folder;
        let file = |end: &str| format!("{name}.{end}");
        fs::write(folder.join(file("ext")), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
        openssl(
            folder,
            &[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                &file("key"),
                "-out",
                &file("csr"),
                "-subj",
                &format!("/CN={name}"),
            ],
        )
        .await?;
        openssl(
            folder,
            &[
                "x509",
                "-req",
                "-in",
                &file("csr"),
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-out",
                &file("crt"),
                "-extfile",
                &file("ext"),
            ],
        )
        .await?;
        Ok(Issued {
            certificate: fs::read_to_string(folder.join(file("crt")))?,
            key: fs::read_to_string(folder.join(file("key")))?,
        })
    }
}

/// Makes a key and a certificate of itself, `<name>.key` and `<name>.crt`.
pub async fn self_signed(folder: &Path, name: &str, arguments: &[&str]) -> Result<()> {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    let made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let files = ["-keyout", key.as_str(), "-out", certificate.as_str()];
    openssl(folder, &[&made[..], &files[..], arguments].concat()).await
}

async fn openssl(folder: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().await?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A relay that takes TLS off; dropping it ends it.
pub struct TlsFront {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    task: JoinHandle<()>,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TlsFront {
    /// A relay before a server, on a free port. With `clients` each client has to show a certificate of that authority.
    pub async fn start(target: SocketAddr, own: &Issued, clients: Option<&Authority>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let config = Arc::new(Mutex::new(config(own, clients)?));
        let task = tokio::spawn(serve(listener, target, Arc::clone(&config)));
        Ok(Self { address, config, task })
    }

    /// The URL clients use.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Shows and asks for other certificates from now on.
    pub fn change(&self, own: &Issued, clients: Option<&Authority>) -> Result<()> {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config(own, clients)?;
        Ok(())
    }
}

fn config(own: &Issued, clients: Option<&Authority>) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("protocol versions")?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.certificate()?.as_bytes())?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    Ok(Arc::new(builder.with_single_cert(chain, key)?))
}

async fn serve(listener: TcpListener, target: SocketAddr, config: Arc<Mutex<Arc<ServerConfig>>>) {
    // Ends with the relay.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let config = Arc::clone(&config.lock().unwrap_or_else(PoisonError::into_inner));
        connections.spawn(relay(stream, target, config));
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(stream: TcpStream, target: SocketAddr, config: Arc<ServerConfig>) -> io::Result<()> {
    let mut client = TlsAcceptor::from(config).accept(stream).await?;
    let mut server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
