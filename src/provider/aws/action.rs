//! The calls this operator makes, by the names that IAM and AWS's own logs have for them. Pure.

/// A service of AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Virtual machines, volumes, snapshots.
    Ec2,
    /// Groups of virtual machines.
    AutoScaling,
    /// Keys for a minute.
    InstanceConnect,
}

/// Calls that count against one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// They show.
    Read,
    /// They change something that is there.
    Mutate,
    /// They need a machine's capacity; AWS grants few of them.
    Launch,
}

macro_rules! actions {
    ($($action:ident $name:literal $service:ident $family:ident,)+) => {
        /// A call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, clippy::enum_variant_names, reason = "each is the call of that name")]
        pub enum Action {
            $($action,)+
        }

        /// Every call that is made, as IAM names it: what a policy must allow.
        pub const ACTIONS: &[&str] = &[$($name,)+];

        impl Action {
            /// Its name in a policy: the service's prefix, a colon, and its own.
            fn in_a_policy(self) -> &'static str {
                match self {
                    $(Self::$action => $name,)+
                }
            }

            /// Whose it is.
            pub fn service(self) -> Service {
                match self {
                    $(Self::$action => Service::$service,)+
                }
            }

            /// The limit it counts against.
            pub fn family(self) -> Family {
                match self {
                    $(Self::$action => Family::$family,)+
                }
            }
        }
    };
}

// Each with its name in IAM, its service, and the limit it counts against.
actions! {
    DescribeAutoScalingGroups "autoscaling:DescribeAutoScalingGroups" AutoScaling Read,
    DescribeLifecycleHooks "autoscaling:DescribeLifecycleHooks" AutoScaling Read,
    DescribePolicies "autoscaling:DescribePolicies" AutoScaling Read,
    DescribeWarmPool "autoscaling:DescribeWarmPool" AutoScaling Read,
    DescribeInstanceRefreshes "autoscaling:DescribeInstanceRefreshes" AutoScaling Read,
    DescribeScalingActivities "autoscaling:DescribeScalingActivities" AutoScaling Read,
    DescribeInstances "ec2:DescribeInstances" Ec2 Read,
    DescribeVolumes "ec2:DescribeVolumes" Ec2 Read,
    DescribeSnapshots "ec2:DescribeSnapshots" Ec2 Read,
    SetDesiredCapacity "autoscaling:SetDesiredCapacity" AutoScaling Mutate,
    CreateOrUpdateTags "autoscaling:CreateOrUpdateTags" AutoScaling Mutate,
    DeleteGroupTags "autoscaling:DeleteTags" AutoScaling Mutate,
    LaunchInstances "autoscaling:LaunchInstances" AutoScaling Launch,
    SetInstanceProtection "autoscaling:SetInstanceProtection" AutoScaling Mutate,
    TerminateInstanceInAutoScalingGroup "autoscaling:TerminateInstanceInAutoScalingGroup" AutoScaling Mutate,
    DetachInstances "autoscaling:DetachInstances" AutoScaling Mutate,
    RecordLifecycleActionHeartbeat "autoscaling:RecordLifecycleActionHeartbeat" AutoScaling Mutate,
    CompleteLifecycleAction "autoscaling:CompleteLifecycleAction" AutoScaling Mutate,
    StopInstances "ec2:StopInstances" Ec2 Mutate,
    StartInstances "ec2:StartInstances" Ec2 Launch,
    TerminateInstances "ec2:TerminateInstances" Ec2 Mutate,
    ModifyInstanceAttribute "ec2:ModifyInstanceAttribute" Ec2 Mutate,
    CreateTags "ec2:CreateTags" Ec2 Mutate,
    DeleteTags "ec2:DeleteTags" Ec2 Mutate,
    CreateVolume "ec2:CreateVolume" Ec2 Mutate,
    AttachVolume "ec2:AttachVolume" Ec2 Mutate,
    DetachVolume "ec2:DetachVolume" Ec2 Mutate,
    DeleteVolume "ec2:DeleteVolume" Ec2 Mutate,
    CreateSnapshot "ec2:CreateSnapshot" Ec2 Mutate,
    CopySnapshot "ec2:CopySnapshot" Ec2 Mutate,
    DeleteSnapshot "ec2:DeleteSnapshot" Ec2 Mutate,
    SendSshPublicKey "ec2-instance-connect:SendSSHPublicKey" InstanceConnect Mutate,
}

impl Service {
    /// Its name in metrics, which is its prefix in IAM.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::AutoScaling => "autoscaling",
            Self::InstanceConnect => "ec2-instance-connect",
        }
    }
}

impl Action {
    /// Its own name.
    pub fn as_str(self) -> &'static str {
        let name = self.in_a_policy();
        name.split_once(':').map_or(name, |(_, own)| own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_named_by_its_service_and_itself() {
        for action in [Action::DescribeAutoScalingGroups, Action::StopInstances, Action::SendSshPublicKey] {
            let name = format!("{}:{}", action.service().as_str(), action.as_str());
            assert!(ACTIONS.contains(&name.as_str()), "{name}");
        }
        for name in ACTIONS {
            let service = name.split_once(':').map(|(service, _)| service);
            let services = [Service::Ec2, Service::AutoScaling, Service::InstanceConnect];
            assert!(services.map(|known| Some(known.as_str())).contains(&service), "{name}");
        }
    }
}
