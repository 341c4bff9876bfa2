//! What a person would type against a cluster: kubectl and helm with one kubeconfig.
//!
//! Works for any cluster a kubeconfig leads to. Caches and helm's settings stay in the given folder, so nothing of the
//! developer's own is read or changed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Longer than any `--wait` or `kubectl wait` a test asks for.
const LIMIT: Duration = Duration::from_secs(180);
/// Outlives every run, the long ones too.
const TOKEN_DURATION: &str = "48h";

/// kubectl and helm for one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    programs: PathBuf,
    kubeconfig: PathBuf,
    /// Caches, settings and further kubeconfigs.
    home: PathBuf,
}

impl Client {
    /// Uses the kubectl and helm in `programs`, and keeps what they write in `dir`.
    pub fn new(programs: &Path, kubeconfig: &Path, dir: &Path) -> Result<Self> {
        let home = dir.join("client");
        fs::create_dir_all(&home)?;
        Ok(Self { programs: programs.to_owned(), kubeconfig: kubeconfig.to_owned(), home })
    }

    /// The kubeconfig in use.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl and returns its stdout; a failure carries its stderr.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run("kubectl", args).await
    }

    /// Runs kubectl as somebody else, for instance with a service account's kubeconfig.
    pub async fn kubectl_as(&self, kubeconfig: &Path, args: &[&str]) -> Result<String> {
        Self { kubeconfig: kubeconfig.to_owned(), ..self.clone() }.kubectl(args).await
    }

    /// `kubectl apply` of the manifests in `yaml`.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.home.join(format!("apply-{}.yaml", crc32fast::hash(yaml.as_bytes())));
        fs::write(&file, yaml)?;
        self.kubectl(&["apply", "-f", file.to_str().context("the bed's folder is not UTF-8")?]).await
    }

    /// Runs helm and returns its stdout; a failure carries its stderr.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.run("helm", args).await
    }

    /// A kubeconfig that speaks as a service account, which must exist.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let duration = format!("--duration={TOKEN_DURATION}");
        let token = self.kubectl(&["create", "token", "-n", namespace, name, &duration]).await?;
        let certificate = self.home.join("authority.crt");
        let view = |path: &'static str| async move {
            self.kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", path]).await
        };
        let authority = view("jsonpath={.clusters[0].cluster.certificate-authority-data}").await?;
        fs::write(&certificate, decode_base64(&authority)?)?;
        let server = view("jsonpath={.clusters[0].cluster.server}").await?;
        let path = self.home.join(format!("{namespace}.{name}.kubeconfig"));
        super::write_private(&path, &kubeconfig(&server, &certificate, token.trim(), namespace))?;
        Ok(path)
    }

    async fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let shown = format!("{program} {}", args.join(" "));
        let output = self.command(program, args).output();
        let output = tokio::time::timeout(LIMIT, output)
            .await
            .with_context(|| format!("no end after {LIMIT:?}: {shown}"))?
            .with_context(|| format!("failed to run {shown}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{shown} failed ({}): {errors}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same command for a caller that wants to run it in its own way, as a watch.
    pub fn command(&self, program: &str, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.home.join("kube"))
            .env("HELM_CACHE_HOME", self.home.join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.home.join("helm/config"))
            .env("HELM_DATA_HOME", self.home.join("helm/data"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// A kubeconfig for one server, token and default namespace.
pub fn kubeconfig(server: &str, certificate: &Path, token: &str, namespace: &str) -> String {
    let certificate = certificate.display();
    format!(
        "\
apiVersion: v1
kind: Config
clusters:
- name: bed
  cluster: {{server: '{server}', certificate-authority: '{certificate}'}}
users:
- name: bed
  user: {{token: '{token}'}}
contexts:
- name: bed
  context: {{cluster: bed, user: bed, namespace: '{namespace}'}}
current-context: bed
"
    )
}

fn decode_base64(text: &str) -> Result<Vec<u8>> {
    use base64::Engine;
    Ok(base64::engine::general_purpose::STANDARD.decode(text.trim())?)
}
