//! The chart renders what it promises, and runs: the operator's real image in a pod of a real kubelet.
//!
//! [`install_operator`] is how other tests get an operator in a pod.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what is not as promised fails the test that looks at it"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::testbed::control_plane::ControlPlane;
use crate::testbed::gitlab::{JobSpec, JobState, Options};
use crate::testbed::image::{self, Image};
use crate::testbed::node::{API_SERVER_NAME, KubeletAccess, Node};
use crate::testbed::ports::free_port;
use crate::testbed::scratch::Scratch;
use crate::testbed::stage::{Cluster, POOL, Setting, Stage};
use crate::testbed::{tools, wait};
use crate::traces;

const KINDS: [&str; 3] = ["jobleases", "runnerpools", "suspendedenvironments"];
const NAMESPACE: &str = "dormouse-system";
const RELEASE: &str = "dormouse";
const ACCOUNT: &str = "system:serviceaccount:dormouse-system:dormouse";
/// Longer than a pod takes to be started and answer its first probe on a busy machine.
const POD: Duration = Duration::from_secs(120);

#[test]
fn the_definitions_in_the_chart_are_the_generated_ones() -> Result<()> {
    for kind in KINDS {
        let file = format!("{kind}.yaml");
        let generated = fs::read_to_string(project().join("crds").join(&file))?;
        let shipped = fs::read_to_string(chart().join("files/crds").join(&file))?;
        assert!(
            generated == shipped,
            "charts/dormouse/files/crds/{file} differs from crds/{file}: run `make generate`"
        );
    }
    assert_eq!(fs::read_dir(chart().join("files/crds"))?.count(), KINDS.len());
    Ok(())
}

#[tokio::test]
async fn values_that_the_chart_does_not_know_are_refused() -> Result<()> {
    for (value, complaint) in [
        ("replica=3", "'replica' not allowed"),
        ("image.registry=r.example.com", "'registry' not allowed"),
        ("image.digest=latest", "digest"),
        ("log.format=text", "format"),
        ("watchNamespace=Not_A_Name", "watchNamespace"),
        ("aws.groups.CI={ci-linux}", "invalid propertyName 'CI'"),
        ("aws.groups.ci=ci-linux", "aws/groups/ci"),
        ("aws.groups.ci={arn:aws:ci-linux}", "aws/groups/ci/0"),
        ("aws.clusterId=my cluster", "clusterId"),
    ] {
        let refusal = render(&[value]).await.expect_err(value).to_string();
        ensure!(refusal.contains(complaint), "{value}: {refusal}");
    }
    let refusal =
        helm(&["template", "dormouse", chart_path()?]).await.expect_err("no repository").to_string();
    ensure!(refusal.contains("image.repository must be given"), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn every_value_of_the_chart_has_a_description_and_its_default_is_allowed() -> Result<()> {
    helm(&["lint", "--strict", chart_path()?, "--set=image.repository=example/dormouse"]).await?;
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json"))?)?;
    let values: Value = serde_saphyr::from_str(&fs::read_to_string(chart().join("values.yaml"))?)?;
    describe_all("", &schema, &values)
}

/// Walks schema and defaults together: each has what the other has.
fn describe_all(path: &str, schema: &Value, values: &Value) -> Result<()> {
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    ensure!(schema["additionalProperties"] == false, "{path} accepts unknown keys");
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        ensure!(
            property["description"].as_str().is_some_and(|text| text.ends_with('.')),
            "{path} has no sentence"
        );
        if path != ".global" {
            let default = values.get(name).with_context(|| format!("{path} is not in values.yaml"))?;
            describe_all(&path, property, default)?;
        }
    }
    for name in values.as_object().into_iter().flatten().map(|(name, _)| name) {
        ensure!(properties.contains_key(name), "{path}.{name} is not in values.schema.json");
    }
    Ok(())
}

#[tokio::test]
async fn every_pod_of_the_chart_is_restricted() -> Result<()> {
    let objects = render(&[]).await?;
    let pods: Vec<_> = objects
        .iter()
        .filter_map(|object| match object["kind"].as_str()? {
            "Pod" => Some(&object["spec"]),
            "Deployment" | "Job" => Some(&object["spec"]["template"]["spec"]),
            _ => None,
        })
        .collect();
    ensure!(pods.len() == 3, "the operator, the check before an uninstall, the check of `helm test`");
    for pod in pods {
        ensure!(pod["securityContext"]["runAsNonRoot"] == true, "{pod:#}");
        ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{pod:#}");
        ensure!(pod["securityContext"].get("runAsUser").is_none(), "a cluster may assign any user: {pod:#}");
        ensure!(pod.get("volumes").is_none() && pod.get("hostNetwork").is_none(), "{pod:#}");
        for container in pod["containers"].as_array().context("containers")? {
            let context = &container["securityContext"];
            ensure!(context["allowPrivilegeEscalation"] == false, "{container:#}");
            ensure!(context["readOnlyRootFilesystem"] == true, "{container:#}");
            ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "{container:#}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_of_one_namespace_gets_no_role_beyond_it() -> Result<()> {
    let objects = render(&["watchNamespace=ci", "rbac.aggregate=false"]).await?;
    ensure!(
        of_kind(&objects, "ClusterRole").is_empty() && of_kind(&objects, "ClusterRoleBinding").is_empty()
    );
    let roles = of_kind(&objects, "Role");
    let places: Vec<_> = roles.iter().filter_map(|role| role["metadata"]["namespace"].as_str()).collect();
    ensure!(places == ["ci", NAMESPACE], "{places:?}");
    ensure!(roles.iter().filter(|role| role.to_string().contains("secrets")).count() == 1);
    Ok(())
}

#[tokio::test]
async fn nobody_gets_wildcards_and_the_operator_cannot_list_secrets() -> Result<()> {
    for settings in [&[][..], &["watchNamespace=ci"]] {
        let objects = render(settings).await?;
        for role in [of_kind(&objects, "ClusterRole"), of_kind(&objects, "Role")].concat() {
            for rule in role["rules"].as_array().context("rules")? {
                ensure!(!rule.to_string().contains('*'), "{rule}");
                if rule["resources"].to_string().contains("secrets") {
                    let verbs = rule["verbs"].to_string();
                    ensure!(!verbs.contains("list") && !verbs.contains("watch"), "{rule}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn definitions_are_kept_unless_told_otherwise_and_can_be_left_out() -> Result<()> {
    let policy =
        |definition: &&Value| definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    for (value, count, kept) in
        [("crds.keep=true", 3, 3), ("crds.keep=false", 3, 0), ("crds.enabled=false", 0, 0)]
    {
        let objects = render(&[value]).await?;
        let definitions = of_kind(&objects, "CustomResourceDefinition");
        ensure!(definitions.len() == count, "{value}: {} definitions", definitions.len());
        ensure!(definitions.iter().filter(|definition| policy(definition)).count() == kept, "{value}");
    }
    Ok(())
}

#[tokio::test]
async fn the_kustomize_base_installs_the_same_operator() -> Result<()> {
    let base = project().join("config/base");
    let kubectl = tools::folder(&["kubectl"]).await?.join("kubectl");
    let rendered = output(Command::new(kubectl).arg("kustomize").arg(base)).await?;
    let base = documents(&rendered)?;
    let chart = render(&[]).await?;

    let only = |objects: &[Value], kind: &str, name: &str| -> Result<Value> {
        let mut found = of_kind(objects, kind);
        found.retain(|object| object["metadata"]["name"].as_str().is_some_and(|full| full.ends_with(name)));
        ensure!(found.len() == 1, "{} objects {kind} {name}", found.len());
        Ok(found[0].clone())
    };
    for name in ["dormouse", "dormouse-view", "dormouse-edit", "dormouse-admin"] {
        let (ours, theirs) = (only(&base, "ClusterRole", name)?, only(&chart, "ClusterRole", name)?);
        ensure!(ours["rules"] == theirs["rules"], "the rules of {name} differ from the chart's");
    }
    let (ours, theirs) = (only(&base, "Deployment", "dormouse")?, only(&chart, "Deployment", "dormouse")?);
    for part in ["/spec/replicas", "/spec/strategy", "/spec/template/spec/securityContext"] {
        ensure!(ours.pointer(part) == theirs.pointer(part), "{part} differs from the chart's");
    }
    let container = |deployment: &Value| {
        let mut container = deployment["spec"]["template"]["spec"]["containers"][0].clone();
        container["image"].take();
        container
    };
    ensure!(container(&ours) == container(&theirs), "the container differs from the chart's");
    for definition in of_kind(&base, "CustomResourceDefinition") {
        let name = definition["metadata"]["name"].as_str().context("a name")?;
        ensure!(definition["spec"] == only(&chart, "CustomResourceDefinition", name)?["spec"], "{name}");
    }
    Ok(())
}

/// Installs the image into a node, and the chart with it; returns the values for a later `helm upgrade`.
///
/// The operator reaches the API server by its name in the cluster, so that each of its requests proves that names are
/// resolved in an image without anything but our programs.
pub async fn install_operator(plane: &ControlPlane, node: &Node, image: &Image) -> Result<Vec<String>> {
    node.import(image).await?;
    let endpoint = plane.endpoint();
    let port = endpoint.rsplit(':').next().context("an endpoint with a port")?;
    let values: Vec<String> = [
        // Two replicas on the network of one node would want the same port.
        "--set=replicas=1,hostNetwork=true".to_owned(),
        format!("--set=image.repository={},image.tag={},image.pullPolicy=Never", image.repository, image.tag),
        format!("--set=admin.port={}", free_port()?),
        format!("--set=env[0].name=KUBERNETES_SERVICE_HOST,env[0].value={API_SERVER_NAME}"),
        format!("--set-string=env[1].name=KUBERNETES_SERVICE_PORT,env[1].value={port}"),
        format!("--namespace={NAMESPACE}"),
    ]
    .into();
    let mut install = vec!["install", RELEASE, chart_path()?, "--create-namespace"];
    install.extend(values.iter().map(String::as_str));
    plane.helm(&install).await?;
    until_operator_is_ready(plane).await?;
    Ok(values)
}

/// Waits until the Deployment's newest pods are ready; a failure shows their state and log.
pub async fn until_operator_is_ready(plane: &ControlPlane) -> Result<()> {
    let limit = format!("--timeout={}s", POD.as_secs());
    let rollout =
        plane.kubectl(&["rollout", "status", "deployment/dormouse", "--namespace", NAMESPACE, &limit]).await;
    if let Err(error) = rollout {
        let describe = plane.kubectl(&["describe", "pods", "--namespace", NAMESPACE]).await?;
        let log = operator_log(plane).await.unwrap_or_else(|error| format!("{error:#}"));
        bail!("{error:#}\n{describe}\n{log}");
    }
    Ok(())
}

/// The log of the operator's pod.
pub async fn operator_log(plane: &ControlPlane) -> Result<String> {
    plane.kubectl(&["logs", "deployment/dormouse", "--namespace", NAMESPACE, "--tail=50"]).await
}

#[tokio::test]
async fn a_pod_of_the_chart_runs_jobs_through_an_upgrade_and_is_not_taken_from_environments() -> Result<()> {
    let scratch = Scratch::new("chart")?;
    let dir = scratch.path().to_owned();
    let access = KubeletAccess::generate(&dir.join("access")).await?;
    let plane = ControlPlane::start(&dir.join("control-plane"), access.control_plane()).await?;
    let node = Node::start(&dir.join("node"), &plane, &access).await?;
    let image = image::operator(&dir, "first").await?;
    let cluster = Arc::new(Cluster::new(plane, scratch));
    let plane = &cluster.control_plane;

    let values = install_operator(plane, &node, &image).await?;
    account_may_do_its_work_and_nothing_else(plane).await?;
    plane.helm(&["test", RELEASE, "--namespace", NAMESPACE]).await?;
    samples_are_accepted(plane).await?;
    pods_are_accepted_where_only_restricted_ones_are(plane).await?;

    // A pod that ends waits for its open poll.
    let hold = Duration::from_secs(2);
    let setting = Setting { gitlab: Options { hold, ..Options::default() }, ..Setting::default() };
    let stage = Stage::on(Arc::clone(&cluster), "pod", &setting).await?;
    if let Err(error) = a_job_sleeps_wakes_and_outlives_an_upgrade(&stage, &values).await {
        bail!("{error:#}\n{}", operator_log(plane).await?);
    }
    stage.gitlab.assert_clean();
    the_operator_stays_until_nothing_needs_it(&stage).await?;

    // The node first: its kubelet would wait for the API server.
    drop(node);
    Ok(())
}

async fn a_job_sleeps_wakes_and_outlives_an_upgrade(stage: &Stage, values: &[String]) -> Result<()> {
    let plane = &stage.cluster.control_plane;
    stage.apply_pool(json!({})).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    let job = |name: &str| JobSpec::new(name).project(7, "group/project").suspendable();
    let failed =
        stage.run(job("fall asleep").suspend_on_failure().script(["echo kept > marker", "exit 9"])).await?;
    ensure!((failed.state, failed.exit_code) == (JobState::Failed, Some(9)), "{}", failed.log_text());
    let key = failed.environment_key.clone().context("it was suspended, so its key is known")?;
    stage.asleep(&key).await?;

    let script = ["cat marker", "for i in $(seq 1 300); do echo line $i; sleep 0.05; done", "exit 3"];
    let woken = stage.gitlab.enqueue(job("wake").environment_key(&key).suspend_on_failure().script(script));
    stage.until_log(woken, "line 5").await?;
    let pod = running_pod(plane).await?;
    let mut upgrade = vec!["upgrade", RELEASE, chart_path()?, "--set=log.filter=debug"];
    upgrade.extend(values.iter().map(String::as_str));
    stage.gitlab.client_restarted();
    plane.helm(&upgrade).await?;
    until_operator_is_ready(plane).await?;
    ensure!(running_pod(plane).await? != pod, "another environment makes another pod");

    let woken = stage.until_over(woken).await?;
    let log = woken.log_text();
    ensure!((woken.state, woken.exit_code) == (JobState::Failed, Some(3)), "{log}");
    ensure!(log.lines().any(|line| line.trim_end().ends_with("kept")), "{log}");
    traces::each_line_once(&woken, 300)?;
    stage.asleep(&key).await?;
    Ok(())
}

async fn the_operator_stays_until_nothing_needs_it(stage: &Stage) -> Result<()> {
    let plane = &stage.cluster.control_plane;
    let uninstall = ["uninstall", RELEASE, "--namespace", NAMESPACE];
    let refusal = plane.helm(&uninstall).await.expect_err("an environment sleeps");
    let told = plane.kubectl(&["logs", "job/dormouse-uninstall-check", "--namespace", NAMESPACE]).await?;
    ensure!(
        told.contains("Dormouse is still in use") && told.contains("group/project"),
        "{told}\n{refusal:#}"
    );
    plane.kubectl(&["get", "deployment", "dormouse", "--namespace", NAMESPACE]).await?;

    stage.kubectl(&["delete", "suspendedenvironments", "--all"]).await?;
    plane.helm(&uninstall).await?;
    wait::until("the operator's pod is gone", POD, async || {
        Ok(plane
            .kubectl(&["get", "pods", "-o", "name", "--namespace", NAMESPACE])
            .await?
            .is_empty()
            .then_some(()))
    })
    .await?;
    // Kept, with every object.
    stage.get("runnerpool", POOL).await?;
    Ok(())
}

async fn account_may_do_its_work_and_nothing_else(plane: &ControlPlane) -> Result<()> {
    let may = async |verb: &str, resource: &str| -> Result<bool> {
        // `kubectl auth can-i` fails for a no, so the question is put to the API itself.
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": ACCOUNT, "groups": ["system:serviceaccounts"], "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": "ci"}},
        });
        let answer: Value = serde_json::from_str(&create(plane, &review).await?)?;
        Ok(answer["status"]["allowed"] == true)
    };
    for (verb, resource) in [
        ("watch", "runnerpools.dormouse.dev"),
        ("patch", "runnerpools.dormouse.dev/status"),
        ("create", "jobleases.dormouse.dev"),
        ("delete", "suspendedenvironments.dormouse.dev"),
        ("get", "secrets"),
        ("create", "secrets"),
        ("get", "configmaps"),
        ("update", "leases.coordination.k8s.io"),
        ("create", "events.events.k8s.io"),
    ] {
        ensure!(may(verb, resource).await?, "the operator may not {verb} {resource}");
    }
    for (verb, resource) in [
        ("list", "secrets"),
        ("watch", "secrets"),
        ("list", "configmaps"),
        ("create", "runnerpools.dormouse.dev"),
        ("delete", "runnerpools.dormouse.dev"),
        ("create", "pods"),
        ("get", "pods/exec"),
        ("create", "serviceaccounts/token"),
    ] {
        ensure!(!may(verb, resource).await?, "the operator may {verb} {resource}");
    }
    Ok(())
}

async fn samples_are_accepted(plane: &ControlPlane) -> Result<()> {
    plane.kubectl(&["create", "namespace", "ci"]).await?;
    let samples = project().join("config/samples");
    let samples = samples.to_str().context("a UTF-8 path")?;
    plane.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", samples]).await?;
    Ok(())
}

/// The pods above use the node's network, which such a namespace refuses; those of the default values do not.
async fn pods_are_accepted_where_only_restricted_ones_are(plane: &ControlPlane) -> Result<()> {
    plane.kubectl(&["create", "namespace", "strict"]).await?;
    plane.kubectl(&["label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted"]).await?;
    let pods = of_kind(&render(&[]).await?, "Pod");
    let mut pod = pods.into_iter().next().context("the pod of `helm test`")?;
    pod["metadata"]["namespace"] = "strict".into();
    pod["spec"]["serviceAccountName"] = "default".into();
    create(plane, &pod).await?;
    pod["spec"]["securityContext"]["runAsNonRoot"] = false.into();
    let refusal = create(plane, &pod).await.expect_err("it may be root").to_string();
    ensure!(refusal.contains("PodSecurity"), "{refusal}");
    Ok(())
}

/// `kubectl create`, which for a review is to ask; returns what the API server answers.
async fn create(plane: &ControlPlane, object: &Value) -> Result<String> {
    let file = tempfile::NamedTempFile::with_suffix(".json")?;
    fs::write(file.path(), object.to_string())?;
    plane.kubectl(&["create", "-o", "json", "-f", file.path().to_str().context("a UTF-8 path")?]).await
}

async fn running_pod(plane: &ControlPlane) -> Result<String> {
    plane
        .kubectl(&[
            "get",
            "pods",
            "-o",
            "name",
            "--namespace",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/name=dormouse",
        ])
        .await
}

/// The folder of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    project().join("charts/dormouse")
}

fn chart_path() -> Result<&'static str> {
    Path::to_str(Box::leak(chart().into_boxed_path())).context("a UTF-8 path")
}

/// The objects that the chart makes of values, hooks included.
pub async fn render(values: &[&str]) -> Result<Vec<Value>> {
    let namespace = format!("--namespace={NAMESPACE}");
    let mut arguments =
        vec!["template", RELEASE, chart_path()?, &namespace, "--set=image.repository=example/dormouse"];
    let settings: Vec<_> = values.iter().map(|value| format!("--set={value}")).collect();
    arguments.extend(settings.iter().map(String::as_str));
    documents(&helm(&arguments).await?)
}

/// Helm without a cluster.
async fn helm(arguments: &[&str]) -> Result<String> {
    let helm = tools::folder(&["helm"]).await?.join("helm");
    output(Command::new(helm).args(arguments)).await
}

/// What a program that has succeeded wrote.
pub async fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The documents of a YAML file.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// The objects of a kind.
pub fn of_kind(objects: &[Value], kind: &str) -> Vec<Value> {
    objects.iter().filter(|object| object["kind"] == kind).cloned().collect()
}
