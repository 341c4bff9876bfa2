//! Addresses on 127.77.0.0/16, a /24 per bed, so that beds of parallel processes never meet.
//!
//! A subnet is claimed by listening on one of its addresses: the kernel gives it back when the process ends.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, anyhow, ensure};

const CLAIM_PORT: u16 = 7722;
const CLAIM_HOST: u8 = 254;
/// Hosts have the lower half of a subnet, their sshds the upper one.
const LAST_HOST: u8 = 120;
const BEHIND: u8 = 128;
/// Addresses that a cloud gives fill the whole of a subnet; their sshds are at the same place of 127.78.0.0/16.
const BEHIND_CLOUD: u8 = 78;

/// The addresses of one bed.
pub struct Subnet {
    number: u8,
    used: AtomicU8,
    _claim: TcpListener,
}

/// Where a host is reached, and where its sshd listens behind its link.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub public: Ipv4Addr,
    pub behind: Ipv4Addr,
}

impl Subnet {
    /// Claims a subnet nobody uses.
    pub fn claim() -> Result<Self> {
        for number in 1..=u8::MAX {
            if let Ok(claim) = TcpListener::bind((address(number, CLAIM_HOST), CLAIM_PORT)) {
                return Ok(Self { number, used: AtomicU8::new(0), _claim: claim });
            }
        }
        Err(anyhow!("all subnets of 127.77.0.0/16 are in use by other beds"))
    }

    /// Its number.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The next pair of addresses, never given twice. A `wanted` one inside the subnet comes with a place of its own for
    /// sshd, as often as it is asked for; another takes the place of the public one.
    pub fn next(&self, wanted: Option<Ipv4Addr>) -> Result<Pair> {
        if let Some(wanted) = wanted
            && wanted.octets().starts_with(&[127, 77, self.number])
        {
            let [first, _, third, fourth] = wanted.octets();
            return Ok(Pair { public: wanted, behind: Ipv4Addr::new(first, BEHIND_CLOUD, third, fourth) });
        }
        let host = self.used.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        ensure!(host <= LAST_HOST, "a bed has addresses for {LAST_HOST} hosts");
        if let Some(wanted) = wanted {
            ensure!(wanted.is_loopback(), "{wanted} is not a loopback address");
        }
        Ok(Pair {
            public: wanted.unwrap_or(address(self.number, host)),
            behind: address(self.number, host + BEHIND),
        })
    }
}

fn address(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, subnet, host)
}
