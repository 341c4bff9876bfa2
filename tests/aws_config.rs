//! What people install and copy for pools on EC2 fits together: chart, overlay, sample, policy, script and guide.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dormouse::allowed_groups::AllowedGroups;
use dormouse::api::RunnerPool;
use dormouse::provider::aws::ACTIONS;
use dormouse::provider::tags;
use serde_json::Value;
use tokio::process::Command;

use crate::chart::{documents, of_kind, output, project, render};
use crate::layering::sources;
use crate::testbed::tools;

/// Values of the chart that are the settings of the overlay.
const LIKE_THE_OVERLAY: [&str; 2] = [
    "aws.groups.ci={ci-*}",
    "serviceAccount.annotations.eks\\.amazonaws\\.com/role-arn=arn:aws:iam::123456789012:role/dormouse-ci-linux",
];

#[tokio::test]
async fn the_operator_finds_the_groups_and_prices_of_the_chart_where_it_is_told() -> Result<()> {
    let values = [
        "aws.groups.ci={ci-*,shared-linux}",
        "aws.groups.*={for-all}",
        "aws.prices.currency=USD",
        "aws.clusterId=production",
    ];
    let objects = render(&values).await?;
    ensure!(file_of(&objects, "DORMOUSE_PRICES")?.contains("currency: USD"));
    let allowed = AllowedGroups::parse(&file_of(&objects, "DORMOUSE_AWS_GROUPS")?)?;
    ensure!(allowed.allows("ci", "ci-linux") && allowed.allows("ci", "shared-linux"));
    ensure!(allowed.allows("web", "for-all") && !allowed.allows("web", "ci-linux"));
    ensure!(variable(&objects, "DORMOUSE_CLUSTER_ID")? == Some("production".into()));

    let without = render(&[]).await?;
    ensure!(of_kind(&without, "ConfigMap").is_empty());
    for name in ["DORMOUSE_AWS_GROUPS", "DORMOUSE_PRICES", "DORMOUSE_CLUSTER_ID"] {
        ensure!(variable(&without, name)?.is_none(), "{name} is set without a value");
    }
    Ok(())
}

#[tokio::test]
async fn other_groups_make_other_pods() -> Result<()> {
    let checksum = async |values: &[&str]| -> Result<Value> {
        let objects = render(values).await?;
        let template = &only(&objects, "Deployment")?["spec"]["template"];
        Ok(template["metadata"]["annotations"]["dormouse.dev/aws-checksum"].clone())
    };
    let (one, two) = (checksum(&["aws.groups.ci={a}"]).await?, checksum(&["aws.groups.ci={b}"]).await?);
    ensure!(one.is_string() && one != two, "{one} {two}");
    ensure!(checksum(&[]).await?.is_null());
    Ok(())
}

#[tokio::test]
async fn who_cannot_read_the_clusters_id_is_asked_for_it() -> Result<()> {
    let values = ["watchNamespace=ci", "aws.groups.ci={ci-*}"];
    let refusal = render(&values).await.expect_err("no cluster id").to_string();
    ensure!(refusal.contains("aws.clusterId must be given"), "{refusal}");
    ensure!(refusal.contains("kubectl get namespace kube-system"), "{refusal}");

    let objects = render(&[values[0], values[1], "aws.clusterId=production"]).await?;
    for role in of_kind(&objects, "Role") {
        ensure!(!role.to_string().contains("\"namespaces\""), "{role:#}");
    }
    Ok(())
}

#[tokio::test]
async fn of_namespaces_the_operator_may_read_kube_system_alone() -> Result<()> {
    let objects = render(&["rbac.aggregate=false"]).await?;
    let rules = only(&objects, "ClusterRole")?["rules"].clone();
    let of_namespaces: Vec<_> = rules
        .as_array()
        .into_iter()
        .flatten()
        .filter(|rule| rule["resources"].to_string().contains("namespaces"))
        .collect();
    ensure!(of_namespaces.len() == 1, "{rules:#}");
    ensure!(of_namespaces[0]["resourceNames"] == serde_json::json!(["kube-system"]), "{rules:#}");
    ensure!(of_namespaces[0]["verbs"] == serde_json::json!(["get"]), "{rules:#}");
    Ok(())
}

#[tokio::test]
async fn the_overlay_installs_what_the_chart_does() -> Result<()> {
    let kubectl = tools::folder(&["kubectl"]).await?.join("kubectl");
    let folder = project().join("config/aws/operator");
    let overlay = documents(&output(Command::new(kubectl).arg("kustomize").arg(folder)).await?)?;
    let chart = render(&LIKE_THE_OVERLAY).await?;

    let container = |objects: &[Value]| -> Result<Value> {
        let mut container = only(objects, "Deployment")?["spec"]["template"]["spec"]["containers"][0].clone();
        container["image"].take();
        // Kustomize puts a patch's variables before those of the base.
        let variables = container["env"].as_array_mut().context("variables")?;
        variables.sort_by_key(|variable| variable["name"].to_string());
        Ok(container)
    };
    let (ours, theirs) = (container(&overlay)?, container(&chart)?);
    ensure!(ours == theirs, "the container is not the chart's: {ours:#}\n{theirs:#}");
    let groups = |objects: &[Value]| -> Result<AllowedGroups> {
        Ok(AllowedGroups::parse(&file_of(objects, "DORMOUSE_AWS_GROUPS")?)?)
    };
    ensure!(groups(&overlay)? == groups(&chart)?);
    let annotations = |objects: &[Value]| -> Result<Value> {
        Ok(only(objects, "ServiceAccount")?["metadata"]["annotations"].clone())
    };
    ensure!(annotations(&overlay)? == annotations(&chart)?);
    Ok(())
}

#[test]
fn the_sample_shows_every_field_and_each_commented_one_is_accepted() -> Result<()> {
    let sample = read("config/samples/runnerpool-aws.yaml")?;
    let pool: RunnerPool = serde_saphyr::from_str(&sample)?;
    ensure!(pool.spec.provider.aws.is_some());

    let definitions = dormouse::api::crds::all()?;
    let definition = definitions.iter().find(|file| file.name == "runnerpools.yaml").context("RunnerPool")?;
    let definition: Value = serde_saphyr::from_str(&definition.yaml)?;
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut all = BTreeSet::new();
    fields(schema, &mut all);
    for part in ["provider/properties/aws", "policies/items", "scaling", "workspaceVolume"] {
        let part = schema.pointer(&format!("/properties/{part}")).with_context(|| part.to_owned())?;
        for name in part["properties"].as_object().context("properties")?.keys() {
            ensure!(sample.contains(&format!("{name}:")), "the sample does not show {name}");
        }
    }

    let mut shown = 0;
    for line in sample.lines() {
        let Some((indent, comment)) = line.split_once("# ") else { continue };
        let Some((name, _)) = comment.split_once(": ") else { continue };
        if indent.trim().is_empty() && all.contains(name) {
            let with = sample.replacen(line, &format!("{indent}{comment}"), 1);
            let accepted = serde_saphyr::from_str::<RunnerPool>(&with);
            ensure!(accepted.is_ok(), "{line}: {:?}", accepted.err());
            shown += 1;
        }
    }
    ensure!(shown > 10, "only {shown} fields are commented out");
    Ok(())
}

/// Actions that AWS asks for on behalf of a call of ours, which we do not make ourselves.
const ON_BEHALF: [&str; 2] = ["ec2:CreateFleet", "ec2:DescribeLaunchTemplateVersions"];

#[test]
fn the_policy_allows_the_calls_that_are_made_and_no_others() -> Result<()> {
    let statements = policy("config/aws/iam-policy.json")?;
    let mut allowed = BTreeSet::new();
    for statement in &statements {
        ensure!(statement["Effect"] == "Allow", "{statement:#}");
        allowed.extend(words(&statement["Action"]));
    }
    let made: BTreeSet<String> =
        ACTIONS.iter().chain(&ON_BEHALF).map(|action| (*action).to_owned()).collect();
    let missing: Vec<_> = made.difference(&allowed).collect();
    let too_many: Vec<_> = allowed.difference(&made).collect();
    ensure!(missing.is_empty() && too_many.is_empty(), "missing: {missing:?}, too many: {too_many:?}");
    Ok(())
}

#[test]
fn what_changes_something_is_allowed_on_what_carries_the_clusters_tag() -> Result<()> {
    for statement in policy("config/aws/iam-policy.json")? {
        let actions = words(&statement["Action"]);
        let only_looks = actions.iter().all(|action| action.contains(":Describe"));
        let on_behalf = actions.iter().all(|action| ON_BEHALF.contains(&action.as_str()));
        if only_looks || on_behalf {
            continue;
        }
        let resources = words(&statement["Resource"]);
        ensure!(resources.iter().all(|resource| resource.starts_with("arn:aws:")), "{statement:#}");
        let tags = &statement["Condition"]["StringEquals"];
        let by_tag = ["ResourceTag", "RequestTag"]
            .iter()
            .any(|kind| tags[format!("aws:{kind}/{}", tags::CLUSTER)] == "CLUSTER_ID");
        ensure!(by_tag, "{statement:#}");
    }
    Ok(())
}

#[test]
fn the_guide_explains_every_statement_and_action() -> Result<()> {
    let guide = read("docs/aws.md")?;
    for statement in policy("config/aws/iam-policy.json")? {
        let name = statement["Sid"].as_str().context("a Sid")?;
        ensure!(guide.contains(&format!("`{name}`")), "docs/aws.md does not explain {name}");
        for action in words(&statement["Action"]).iter().filter(|action| !action.contains(":Describe")) {
            let (_, action) = action.split_once(':').context("a service")?;
            ensure!(guide.contains(action), "docs/aws.md does not say what {action} is for");
        }
    }
    Ok(())
}

#[test]
fn every_reason_of_a_fleet_and_of_a_tier_is_explained() -> Result<()> {
    let explained = read("docs/troubleshooting.md")?;
    let mut named = 0;
    for folder in ["src/fleet", "src/environment"] {
        for (file, text) in sources(&project().join(folder))? {
            // A module of tests by itself.
            if file.ends_with("simulation.rs") {
                continue;
            }
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in product.split('"').skip(1).step_by(2).filter(|word| is_camel_case(word)) {
                ensure!(
                    explained.contains(word),
                    "docs/troubleshooting.md does not tell of {word} ({folder}/{file})"
                );
                named += 1;
            }
        }
    }
    ensure!(named > 50, "only {named} reasons were found");
    Ok(())
}

/// Reasons, and the fields of AWS that messages name: at least two words in one, as `GroupMissing`.
fn is_camel_case(word: &str) -> bool {
    let capitals = word.chars().filter(char::is_ascii_uppercase).count();
    word.starts_with(|first: char| first.is_ascii_uppercase())
        && word.chars().all(|character| character.is_ascii_alphanumeric())
        && capitals >= 2
        && word.len() > capitals
}

#[tokio::test]
async fn the_check_of_an_account_says_every_call_before_it_makes_one() -> Result<()> {
    let script = project().join("config/aws/check-account.sh");
    let arguments =
        ["--region", "eu-central-1", "--template", "ci-linux", "--subnet", "subnet-1", "--dry-run"];
    // With no AWS CLI, and nothing else than what every shell has.
    let told = output(Command::new(&script).args(arguments).env("PATH", "/usr/bin:/bin")).await?;
    for call in [
        "create-auto-scaling-group",
        "launch-instances",
        "exit-standby",
        "detach-instances",
        "complete-lifecycle-action",
        "stop-instances --instance-ids i-INSTANCE --hibernate",
        "create-snapshot",
        "simulate-custom-policy",
        "delete-auto-scaling-group",
        "terminate-instances",
        "delete-snapshot",
    ] {
        ensure!(told.contains(call), "{call} is not told:\n{told}");
    }
    ensure!(told.contains("about $"), "no estimate of the cost:\n{told}");
    // What is made is removed: as many volumes as were made.
    let count = |word: &str| told.matches(word).count();
    ensure!(count("ec2 create-volume") == count("ec2 delete-volume"), "{told}");

    let without_cluster = [&arguments[..], &["--role-arn", "arn:aws:iam::123456789012:role/x"]].concat();
    for wrong in
        [&["--region", "eu-central-1"][..], &["--regoin", "eu-central-1"], &["--subnet"], &without_cluster]
    {
        output(Command::new(&script).args(wrong)).await.expect_err("it lacks something");
    }
    Ok(())
}

#[tokio::test]
async fn the_check_of_an_account_asks_for_each_action_of_the_policy_and_does_it_by_the_role() -> Result<()> {
    let script = project().join("config/aws/check-account.sh");
    let arguments = [
        ["--region", "eu-central-1", "--template", "ci-linux", "--subnet", "subnet-1"],
        ["--login", "ubuntu@private", "--cluster-id", "c", "--role-arn", "arn:aws:iam::123456789012:role/x"],
    ];
    let mut command = Command::new(&script);
    command.args(arguments.as_flattened()).arg("--dry-run").env("PATH", "/usr/bin:/bin");
    let told = output(&mut command).await?;
    let allowed: BTreeSet<String> = policy("config/aws/iam-policy.json")?
        .iter()
        .flat_map(|statement| words(&statement["Action"]))
        .collect();

    let expected = |line: &str| {
        let rest = line.trim().strip_prefix("(allowed is expected of ")?;
        Some(rest.trim_end_matches(')').to_owned())
    };
    let simulated: BTreeSet<String> = told.lines().filter_map(expected).collect();
    ensure!(simulated == allowed, "not the policy's: {:?}", simulated.symmetric_difference(&allowed));
    for action in &allowed {
        ensure!(told.contains(&format!("--action-names {action} ")), "{action} is not simulated");
    }

    // A call is `aws --region R SERVICE the-action`, an action of the policy `service:TheAction`.
    let call = |line: &str| {
        let words: Vec<&str> =
            line.trim().strip_prefix("(as the role)")?.split_whitespace().skip(3).take(2).collect();
        let [service, action] = words.as_slice() else { return None };
        Some(format!("{service}:{}", action.replace('-', "")))
    };
    let by_the_role: BTreeSet<String> = told.lines().filter_map(call).collect();
    let known: BTreeSet<String> = allowed.iter().map(|action| action.to_lowercase()).collect();
    let strange: Vec<_> = by_the_role.difference(&known).collect();
    ensure!(strange.is_empty(), "the role may not: {strange:?}");
    // Not called by us, in place of another one, or a person's.
    let others = ["ec2:createfleet", "autoscaling:setdesiredcapacity", "ec2:copysnapshot"];
    let untried: Vec<_> = known
        .difference(&by_the_role)
        .filter(|action| !action.contains(":describe") && !others.contains(&action.as_str()))
        .collect();
    ensure!(untried.is_empty(), "not done by the role: {untried:?}");
    Ok(())
}

/// The statements of a policy.
fn policy(path: &str) -> Result<Vec<Value>> {
    let policy: Value = serde_json::from_str(&read(path)?)?;
    policy["Statement"].as_array().cloned().context("statements")
}

/// One word or a list of them.
fn words(value: &Value) -> Vec<String> {
    let one = value.as_str().map(str::to_owned);
    let list = value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    one.into_iter().chain(list).collect()
}

/// The names of all fields below a schema.
fn fields(schema: &Value, into: &mut BTreeSet<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        into.insert(name.clone());
        fields(property, into);
        fields(&property["items"], into);
    }
}

/// What the file that a variable of the operator names contains, by the volume that is mounted there.
fn file_of(objects: &[Value], variable_name: &str) -> Result<String> {
    let path = variable(objects, variable_name)?.with_context(|| format!("{variable_name} is not set"))?;
    let path = PathBuf::from(path);
    let (folder, file) = (path.parent().context("a folder")?, path.file_name().context("a file")?);
    let pod = &only(objects, "Deployment")?["spec"]["template"]["spec"];
    let find = |list: &Value, key: &str, value: &str| {
        list.as_array().into_iter().flatten().find(|entry| entry[key] == value).cloned()
    };
    let folder = folder.to_str().context("a UTF-8 path")?;
    let mount = find(&pod["containers"][0]["volumeMounts"], "mountPath", folder).context("a mount")?;
    ensure!(mount["readOnly"] == true, "{mount}");
    let volume =
        find(&pod["volumes"], "name", mount["name"].as_str().context("a name")?).context("a volume")?;
    let map = of_kind(objects, "ConfigMap")
        .into_iter()
        .find(|map| map["metadata"]["name"] == volume["configMap"]["name"])
        .context("the ConfigMap")?;
    let text = map["data"][file.to_str().context("a UTF-8 name")?].as_str();
    Ok(text.context("no such file in the ConfigMap")?.to_owned())
}

/// A variable of the operator's container.
fn variable(objects: &[Value], name: &str) -> Result<Option<String>> {
    let container = &only(objects, "Deployment")?["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().context("variables")?;
    let variable = variables.iter().find(|variable| variable["name"] == name);
    Ok(variable.and_then(|variable| variable["value"].as_str()).map(str::to_owned))
}

/// The one object of a kind.
fn only(objects: &[Value], kind: &str) -> Result<Value> {
    let mut found = of_kind(objects, kind);
    ensure!(found.len() == 1, "{} objects of kind {kind}", found.len());
    Ok(found.remove(0))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(project().join(path)).with_context(|| path.to_owned())
}
