"""EC2's calls that tag, with the checks of what is tagged that moto leaves out."""

from typing import Any

import machines
import snapshots
import volumes
from errors import CloudError
from moto.core.responses import ActionResult


def _check_resources(region: str, resources: list[str]) -> None:
    for resource in resources:
        if resource.startswith("i-"):
            machines.find(region, resource)
        elif resource.startswith("vol-"):
            volumes.find(region, resource)
        elif resource.startswith("snap-"):
            snapshots.find(region, resource)


def _check_keys(tags: list[dict[str, str]]) -> None:
    for tag in tags:
        if tag.get("Key", "").startswith("aws:"):
            raise CloudError(
                "InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use"
            )


class Tags:
    """Taken over by moto's class of the same calls."""

    def create_tags(self: Any) -> ActionResult:
        _check_keys(self._get_param("Tags", []))
        _check_resources(self.region, self._get_param("Resources", []))
        return MOTO["create_tags"](self)

    def delete_tags(self: Any) -> ActionResult:
        _check_keys(self._get_param("Tags", []))
        _check_resources(self.region, self._get_param("Resources", []))
        return MOTO["delete_tags"](self)


# moto's own methods, by name, filled when ours take their places.
MOTO: dict[str, Any] = {}
