"""moto's tables, by region, and small questions to them."""

import ipaddress
from typing import Any

from errors import CloudError
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.utils import convert_tag_spec
from world import WORLD


def ec2(region: str) -> Any:
    return ec2_backends[DEFAULT_ACCOUNT_ID][region]


def tags_of(region: str, resource: str) -> dict[str, str]:
    return dict(ec2(region).tags.get(resource, {}))


def tag_specification(specs: list[dict[str, Any]] | None) -> dict[str, dict[str, str]]:
    for spec in specs or []:
        for tag in spec.get("Tags", []):
            if tag["Key"].startswith("aws:"):
                raise CloudError(
                    "InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use"
                )
    return convert_tag_spec([spec for spec in specs or [] if spec.get("Tags")])


def template(region: str, spec: dict[str, Any]) -> Any:
    """The version of a launch template that a request names; `$Latest` and `$Default` too."""
    return ec2(region)._get_template_from_args({key: value for key, value in spec.items() if value})


def subnet(region: str, subnet_id: str) -> Any:
    return ec2(region).get_subnet(subnet_id)


def free_address(region: str, subnet_id: str) -> str:
    """The lowest address never used, else the one free for longest; `reuse_addresses` prefers the last one freed.

    AWS keeps the first four addresses of a subnet and the last one for itself.
    """
    network = subnet(region, subnet_id)
    taken = set(network._subnet_ips)
    freed = FREED.setdefault(subnet_id, [])
    if WORLD.settings.reuse_addresses and freed:
        return freed.pop()
    hosts = list(ipaddress.ip_network(network.cidr_block))[4:-1]
    for host in hosts:
        if str(host) not in taken and str(host) not in freed:
            return str(host)
    if freed:
        return freed.pop(0)
    raise CloudError(
        "InsufficientFreeAddressesInSubnet",
        f"There are not enough free addresses in subnet '{subnet_id}' to satisfy the requested number of instances.",
    )


def give_back(region: str, subnet_id: str, address: str) -> None:
    subnet(region, subnet_id).del_subnet_ip(address)
    FREED.setdefault(subnet_id, []).append(address)


# Addresses that belonged to an instance and are free again, the last one freed at the end; by subnet.
FREED: dict[str, list[str]] = {}
