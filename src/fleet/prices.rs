//! What machines and storage cost, read from a file of the operator's settings. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The list prices that are used where nobody gives others.
const BUILT_IN: &str = include_str!("prices.yaml");

/// Hours of a month, as storage is billed.
pub const HOURS_PER_MONTH: f64 = 730.0;

/// Prices in US dollars.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prices {
    /// The day they are of.
    date: String,
    /// Where they are from.
    source: String,
    /// Their currency.
    currency: String,
    /// An hour of an instance, by type.
    instances: BTreeMap<String, f64>,
    /// An hour of an instance of another type.
    default_instance: f64,
    /// A GiB of a volume for a month, by type.
    #[serde(rename = "volumeGiBMonth")]
    volume_gib_month: BTreeMap<String, f64>,
    /// The same for another type.
    #[serde(rename = "defaultVolumeGiBMonth")]
    default_volume_gib_month: f64,
    /// A GiB of a snapshot for a month.
    #[serde(rename = "snapshotGiBMonth")]
    snapshot_gib_month: f64,
    /// An hour of a public address.
    #[serde(rename = "publicIPv4")]
    public_ipv4: f64,
    /// Size that is assumed of root volumes.
    #[serde(rename = "rootGiB")]
    root_gib: u32,
    /// Type that is assumed of root volumes.
    root_type: String,
}

/// Why prices cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// The text is not what it should be.
    #[error("the prices cannot be read: {0}; see the operator's built-in file for an example")]
    Unreadable(String),
    /// A value is not what it may be.
    #[error("{key} of the prices is {value}, not {wanted}")]
    Value {
        /// Its key.
        key: String,
        /// What it says.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
}

impl Prices {
    /// Reads prices from YAML.
    pub fn from_yaml(text: &str) -> Result<Self, PriceError> {
        let prices: Self =
            serde_saphyr::from_str(text).map_err(|error| PriceError::Unreadable(error.to_string()))?;
        prices.checked()
    }

    /// The list prices that the operator comes with.
    pub fn built_in() -> Result<Self, PriceError> {
        Self::from_yaml(BUILT_IN)
    }

    fn checked(self) -> Result<Self, PriceError> {
        let value = |key: &str, value: &str, wanted| {
            Err(PriceError::Value { key: key.to_owned(), value: format!("{value:?}"), wanted })
        };
        if self.currency != "USD" {
            return value("currency", &self.currency, "USD: status and metrics speak of US dollars");
        }
        if self.date.parse::<jiff::civil::Date>().is_err() {
            return value("date", &self.date, "a day such as \"2025-01-31\"");
        }
        if self.source.trim().is_empty() {
            return value("source", &self.source, "a word on where the prices are from");
        }
        let single = [
            ("defaultInstance".to_owned(), self.default_instance),
            ("defaultVolumeGiBMonth".to_owned(), self.default_volume_gib_month),
            ("snapshotGiBMonth".to_owned(), self.snapshot_gib_month),
            ("publicIPv4".to_owned(), self.public_ipv4),
        ];
        let named = |name: &'static str, prices: &BTreeMap<String, f64>| {
            prices.iter().map(move |(key, price)| (format!("{name}.{key}"), *price)).collect::<Vec<_>>()
        };
        let listed = named("instances", &self.instances);
        let volumes = named("volumeGiBMonth", &self.volume_gib_month);
        for (key, price) in single.into_iter().chain(listed).chain(volumes) {
            if !(0.0..=1e6).contains(&price) {
                let value = price.to_string();
                return Err(PriceError::Value {
                    key,
                    value,
                    wanted: "a number of US dollars from 0 to 1000000",
                });
            }
        }
        Ok(self)
    }

    /// An hour of an instance.
    pub fn instance_hour(&self, machine_type: &str) -> f64 {
        self.instances.get(machine_type).copied().unwrap_or(self.default_instance)
    }

    /// An hour of a volume.
    pub fn volume_hour(&self, type_: &str, size_gib: u32) -> f64 {
        let month = self.volume_gib_month.get(type_).copied().unwrap_or(self.default_volume_gib_month);
        month * f64::from(size_gib) / HOURS_PER_MONTH
    }

    /// An hour of an instance's root volume.
    pub fn root_hour(&self) -> f64 {
        self.volume_hour(&self.root_type, self.root_gib)
    }

    /// An hour of a snapshot. Its size is that of the volume it was taken of: what AWS stores of it, and bills, is less,
    /// and is not told.
    pub fn snapshot_hour(&self, size_gib: u32) -> f64 {
        self.snapshot_gib_month * f64::from(size_gib) / HOURS_PER_MONTH
    }

    /// An hour of a public address.
    pub fn address_hour(&self) -> f64 {
        self.public_ipv4
    }

    /// Size that is assumed of root volumes.
    pub fn root_gib(&self) -> u32 {
        self.root_gib
    }

    /// Where they are from, and of when, for people.
    pub fn origin(&self) -> String {
        format!("{} ({})", self.source, self.date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(from: &str, to: &str) -> Result<Prices, PriceError> {
        assert!(BUILT_IN.contains(from), "{from}");
        Prices::from_yaml(&BUILT_IN.replacen(from, to, 1))
    }

    #[test]
    fn the_built_in_prices_can_be_read_and_say_where_they_are_from() {
        let prices = Prices::built_in().unwrap();
        assert_eq!(prices.instance_hour("m6i.large"), 0.096);
        assert_eq!(prices.instance_hour("u-24tb1.metal"), 0.192);
        assert!((prices.volume_hour("gp3", 50) - 0.0055).abs() < 0.0001);
        assert_eq!(prices.volume_hour("new", 73), 0.01);
        assert!(prices.origin().contains("from memory") && prices.origin().contains("2026-11-25"));
        assert!(prices.instances.len() > 40);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        let value = |from: &str, to: &str| with(from, to).unwrap_err().to_string();
        assert!(
            value("m6i.large: 0.096", "m6i.large: -1").starts_with("instances.m6i.large of the prices is -1")
        );
        assert!(value("gp3: 0.08", "gp3: .inf").contains("gp3"), "{}", value("gp3: 0.08", "gp3: .inf"));
        assert!(
            value("currency: USD", "currency: EUR").contains("currency of the prices is \"EUR\", not USD")
        );
        assert!(
            value("date: \"2026-11-25\"", "date: lately").starts_with("date of the prices is \"lately\"")
        );
        assert!(value("snapshotGiBMonth: 0.05", "snapshotGiBMonth: 1e9").starts_with("snapshotGiBMonth"));
        assert!(value("publicIPv4: 0.005", "publicIPv6: 0").contains("publicIPv6"));
        assert!(value("publicIPv4: 0.005", "").contains("publicIPv4"));
        assert!(
            value("rootGiB: 50", "rootGiB: many").contains("rootGiB"),
            "{}",
            value("rootGiB: 50", "rootGiB: many")
        );
        assert!(matches!(Prices::from_yaml("[]"), Err(PriceError::Unreadable(_))));
        assert!(matches!(Prices::from_yaml(""), Err(PriceError::Unreadable(_))));
    }
}
