//! Launch templates.

use anyhow::{Context, Result};
use aws_sdk_ec2::types::{
    InstanceType, LaunchTemplateBlockDeviceMappingRequest, LaunchTemplateEbsBlockDeviceRequest,
    LaunchTemplateHibernationOptionsRequest, LaunchTemplateInstanceMarketOptionsRequest,
    LaunchTemplateSpotMarketOptionsRequest, LaunchTemplateTagSpecificationRequest, MarketType,
    RequestLaunchTemplateData, ResourceType, SpotInstanceType, Tag,
};

use super::{Cloud, IMAGE, Network};

/// The device of the root volume.
const ROOT: &str = "/dev/sda1";

/// What instances are like.
#[derive(Clone, Debug)]
pub struct Template {
    /// Of the template.
    pub name: String,
    /// The key pair; None: a template without a key.
    pub key: Option<String>,
    /// Configured for hibernation, with the encrypted root that takes.
    pub hibernation: bool,
    /// GiB of the root volume.
    pub root_gib: i32,
    /// The root volume goes with the instance.
    pub root_goes: bool,
    /// How it is paid.
    pub market: Market,
    /// Tags of instances.
    pub tags: Vec<(String, String)>,
}

/// How an instance is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Market {
    /// At its price.
    OnDemand,
    /// On spot; it cannot be stopped.
    SpotOnce,
    /// On spot, and can be stopped.
    SpotPersistent,
}

impl Template {
    /// An instance on demand with a key and 8 GiB of disk.
    pub fn new(name: &str, key: &str) -> Self {
        Self {
            name: name.to_owned(),
            key: Some(key.to_owned()),
            hibernation: false,
            root_gib: 8,
            root_goes: true,
            market: Market::OnDemand,
            tags: Vec::new(),
        }
    }

    fn data(&self, network: &Network) -> RequestLaunchTemplateData {
        let root = LaunchTemplateEbsBlockDeviceRequest::builder()
            .volume_size(self.root_gib)
            .encrypted(self.hibernation)
            .delete_on_termination(self.root_goes)
            .build();
        let mapping = LaunchTemplateBlockDeviceMappingRequest::builder().device_name(ROOT).ebs(root).build();
        let spot = |kind| {
            LaunchTemplateInstanceMarketOptionsRequest::builder()
                .market_type(MarketType::Spot)
                .spot_options(
                    LaunchTemplateSpotMarketOptionsRequest::builder().spot_instance_type(kind).build(),
                )
                .build()
        };
        let market = match self.market {
            Market::OnDemand => None,
            Market::SpotOnce => Some(spot(SpotInstanceType::OneTime)),
            Market::SpotPersistent => Some(spot(SpotInstanceType::Persistent)),
        };
        let tags =
            self.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let tagged = LaunchTemplateTagSpecificationRequest::builder()
            .resource_type(ResourceType::Instance)
            .set_tags(Some(tags))
            .build();
        RequestLaunchTemplateData::builder()
            .image_id(IMAGE)
            .instance_type(InstanceType::M6iLarge)
            .set_key_name(self.key.clone())
            .security_group_ids(&network.security_group)
            .hibernation_options(
                LaunchTemplateHibernationOptionsRequest::builder().configured(self.hibernation).build(),
            )
            .block_device_mappings(mapping)
            .set_instance_market_options(market)
            .set_tag_specifications((!self.tags.is_empty()).then(|| vec![tagged]))
            .build()
    }
}

impl Cloud {
    /// Makes it, and gives its id.
    pub async fn template(&self, template: &Template, network: &Network) -> Result<String> {
        let made = self
            .ec2
            .create_launch_template()
            .launch_template_name(&template.name)
            .launch_template_data(template.data(network))
            .send()
            .await
            .with_context(|| format!("failed to make the launch template {}", template.name))?;
        made.launch_template
            .and_then(|made| made.launch_template_id)
            .context("CreateLaunchTemplate answered no id")
    }

    /// Starts one instance of a template in a subnet, outside of any group, and gives its id.
    pub async fn launch(&self, template: &str, subnet: &str) -> Result<String> {
        let spec =
            aws_sdk_ec2::types::LaunchTemplateSpecification::builder().launch_template_id(template).build();
        let run = self.ec2.run_instances().launch_template(spec).subnet_id(subnet).min_count(1).max_count(1);
        let started = run.send().await.with_context(|| format!("failed to launch from {template}"))?;
        let first = started.instances.unwrap_or_default().into_iter().next();
        first.and_then(|one| one.instance_id).context("RunInstances answered no id")
    }
}
