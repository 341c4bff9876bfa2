//! Whom a TLS connection trusts: authorities, and the very certificates that a bundle names.
//!
//! Both programs check servers by this, so that a bundle means the same to the operator and on a host. Small installations
//! often have one certificate that signs itself and says that it is an authority (what `openssl req -x509` makes). git and
//! curl take it where it is in the bundle; by the rules of rustls no authority may speak as a server. Such a certificate is
//! taken here exactly where it is byte for byte one of the bundle's, is valid now and names the server: whoever has its key
//! could sign another one that would be taken anyway. Nothing else is taken that rustls would not take.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_native_certs::load_native_certs;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The bundle cannot be read.
    #[error("the CA bundle {0}")]
    Bundle(String),
    /// The certificate to show, or its key, cannot be read.
    #[error("{0}")]
    Identity(String),
    /// Something else is wrong.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

/// Settings of connections that trust a bundle besides the system's authorities, or those that are built in where the
/// system has none. `identity` is the PEM of a certificate, its chain and its key, to be shown where a server asks.
///
/// # Errors
/// When the bundle or the identity cannot be read.
pub fn client_config(bundle: Option<&str>, identity: Option<&str>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let named = bundle.map(read_bundle).transpose()?.unwrap_or_default();
    let verifier = Verifier::new(named, system_roots(), Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some(pem) = identity else { return Ok(builder.with_no_client_auth()) };
    let unreadable = |what: &str| TlsError::Identity(format!("it holds no {what} that can be read"));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable("certificate"))?;
    if chain.is_empty() {
        return Err(unreadable("certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| unreadable("key"))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Identity(error.to_string()))
}

/// The same for clients that speak HTTP/2 too.
///
/// # Errors
/// When the bundle or the identity cannot be read.
pub fn http2_config(bundle: Option<&str>, identity: Option<&str>) -> Result<ClientConfig, TlsError> {
    let mut config = client_config(bundle, identity)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The system's authorities. Files that cannot be read are as good as absent.
fn system_roots() -> Vec<CertificateDer<'static>> {
    let native = load_native_certs().certs;
    if native.is_empty() { TLS_SERVER_ROOT_CERTS.to_vec() } else { native }
}

/// The same as text, for programs that want a file: one certificate after the other.
pub fn system_pem() -> String {
    as_pem(&system_roots())
}

fn as_pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            // All of it is ASCII.
            let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

fn read_bundle(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |error| TlsError::Bundle(format!("cannot be read: {error}"));
    let named: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(unreadable)?;
    if named.is_empty() { Err(TlsError::Bundle("holds no certificate".to_owned())) } else { Ok(named) }
}

/// The check of a server's certificate.
#[derive(Debug)]
struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(
        named: Vec<CertificateDer<'static>>,
        system: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in &named {
            let added = roots.add(certificate.clone());
            added.map_err(|error| {
                TlsError::Bundle(format!("holds a certificate that cannot be read: {error}"))
            })?;
        }
        // Systems carry certificates that are of no use here; nobody asked for them by name.
        roots.add_parsable_certificates(system);
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| TlsError::Rustls(Error::Other(OtherError(Arc::new(error)))))?;
        Ok(Self { authorities, named })
    }

    fn names(&self, certificate: &CertificateDer<'_>) -> bool {
        self.named.iter().any(|named| named.as_ref() == certificate.as_ref())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked =
            self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match checked {
            // Told only of a certificate whose time is right: that is looked at before.
            Err(error) if is_authority_as_server(&error) && self.names(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Whether the one thing wrong is that the certificate says of itself to be an authority.
fn is_authority_as_server(error: &Error) -> bool {
    // rustls has no name of its own for it and hands on its checker's words.
    let Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else { return false };
    cause.to_string() == "CaUsedAsEndEntity"
}

#[cfg(test)]
mod tests;
