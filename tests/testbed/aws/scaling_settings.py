"""The settings of a group: checked, then set."""

from typing import Any

import backends
from errors import validation
from group import Group
from scaling_views import SHOWN, number, truth
from world import WORLD


def take_settings(group: Group, params: dict[str, Any], name_given: bool) -> None:
    """Checks what create and update have in common, then sets it."""
    low = number(params.get("MinSize"), group.low)
    high = number(params.get("MaxSize"), group.high)
    asked = number(params.get("DesiredCapacity"))
    assert low is not None and high is not None
    desired = asked if asked is not None else (low if name_given else min(max(group.desired, low), high))
    if low > high:
        raise validation(f"Max bound, {high}, must be greater than or equal to min bound, {low}")
    check_bounds(desired, low, high)
    if params.get("VPCZoneIdentifier"):
        group.subnets = [subnet.strip() for subnet in params["VPCZoneIdentifier"].split(",")]
        for subnet in group.subnets:
            if subnet not in _subnets(group.region):
                raise validation(f"The subnet ID '{subnet}' does not exist")
    mixed = params.get("MixedInstancesPolicy")
    spec = params.get("LaunchTemplate") or (mixed or {}).get("LaunchTemplate", {}).get(
        "LaunchTemplateSpecification"
    )
    if spec:
        try:
            backends.template(group.region, spec)
        except Exception as error:
            raise validation(
                "You must use a valid fully-formed launch template. The specified launch template does not exist."
            ) from error
        group.template = spec
    if mixed:
        distribution = mixed.get("InstancesDistribution") or {}
        all_spot = not int(distribution.get("OnDemandBaseCapacity") or 0) and (
            str(distribution.get("OnDemandPercentageAboveBaseCapacity")) == "0"
        )
        kinds = mixed.get("LaunchTemplate", {}).get("Overrides") or [{}]
        group.overrides = {"InstanceType": kinds[0].get("InstanceType")}
        if all_spot:
            group.overrides["InstanceMarketOptions"] = {"MarketType": "spot"}
    group.low, group.high, group.desired = low, high, desired
    for name in SHOWN:
        if params.get(name) is not None:
            group.given[name] = params[name]
    if params.get("NewInstancesProtectedFromScaleIn") is not None:
        group.protect_new = truth(params["NewInstancesProtectedFromScaleIn"])
    policy = (params.get("InstanceLifecyclePolicy") or {}).get("RetentionTriggers") or {}
    if policy.get("TerminateHookAbandon"):
        group.retain = policy["TerminateHookAbandon"] == "retain"


def _subnets(region: str) -> set[str]:
    return {subnet for by_zone in backends.ec2(region).subnets.values() for subnet in by_zone}


def check_bounds(desired: int, low: int, high: int) -> None:
    if not WORLD.strict("bounds"):
        return
    if desired < low:
        raise validation(
            f"New SetDesiredCapacity value {desired} is below min value {low} for the AutoScalingGroup."
        )
    if desired > high:
        raise validation(
            f"New SetDesiredCapacity value {desired} is above max value {high} for the AutoScalingGroup."
        )
