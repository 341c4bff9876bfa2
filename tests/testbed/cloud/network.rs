//! A network on loopback: a VPC that is one /24 of 127.77.0.0/16, a subnet in each zone, a security group.

use anyhow::{Context, Result, ensure};

use super::{Cloud, REGION};

/// Addresses of machines are in the lower half of the /24, so that each has one 128 above it for what is behind it.
const HALF: u32 = 128;
const MOST_ZONES: u32 = 4;

/// What instances are launched into.
#[derive(Clone, Debug)]
pub struct Network {
    /// `vpc-...`
    pub vpc: String,
    /// One a zone, in the order of zones a, b, c, d.
    pub subnets: Vec<Subnet>,
    /// Allows all; nothing enforces it.
    pub security_group: String,
}

/// A subnet.
#[derive(Clone, Debug)]
pub struct Subnet {
    /// `subnet-...`
    pub id: String,
    /// The availability zone.
    pub zone: String,
}

impl Cloud {
    /// A network 127.77.`number`.0/24 with one to four zones. AWS keeps four addresses and the last of each subnet, so two
    /// zones have room for 59 instances each, four for 27 each.
    pub async fn network(&self, number: u8, zones: u32) -> Result<Network> {
        ensure!((1..=MOST_ZONES).contains(&zones), "a network has 1 to {MOST_ZONES} zones, not {zones}");
        let made = self.ec2.create_vpc().cidr_block(format!("127.77.{number}.0/24")).send().await?;
        let vpc = made.vpc.and_then(|vpc| vpc.vpc_id).context("CreateVpc answered no id")?;
        let size = if zones <= 2 { HALF / 2 } else { HALF / MOST_ZONES };
        let bits = 32 - size.ilog2();
        let mut subnets = Vec::new();
        for index in 0..zones {
            let letter = char::from_digit(10 + index, 36).context("a zone has a letter")?;
            let zone = format!("{REGION}{letter}");
            let block = format!("127.77.{number}.{}/{bits}", index * size);
            let made = self
                .ec2
                .create_subnet()
                .vpc_id(&vpc)
                .cidr_block(&block)
                .availability_zone(&zone)
                .send()
                .await
                .with_context(|| format!("failed to make the subnet {block} in {zone}"))?;
            let id =
                made.subnet.and_then(|subnet| subnet.subnet_id).context("CreateSubnet answered no id")?;
            subnets.push(Subnet { id, zone });
        }
        let made = self
            .ec2
            .create_security_group()
            .vpc_id(&vpc)
            .group_name("machines")
            .description("machines of the lab")
            .send()
            .await?;
        let security_group = made.group_id.context("CreateSecurityGroup answered no id")?;
        Ok(Network { vpc, subnets, security_group })
    }

    /// Makes the public key known to the cloud, so that a template can name it.
    pub async fn key_pair(&self, name: &str, public_key: &str) -> Result<()> {
        let material = aws_sdk_ec2::primitives::Blob::new(public_key.as_bytes());
        let import = self.ec2.import_key_pair().key_name(name).public_key_material(material);
        import.send().await.with_context(|| format!("failed to import the key {name}"))?;
        Ok(())
    }
}
