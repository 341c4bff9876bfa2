"""Keeps moto from loading what nobody here asks for, which is most of the time it takes to start.

moto reads the offers of instance types of every region, and asks boto3 three times which regions there are.
"""

import os
from typing import Any

# Read by moto when it is imported: no table of public images, which slows every listing too.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
os.environ["MOTO_ALLOW_NONEXISTENT_REGION"] = "true"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def prepare(region: str) -> None:
    """To be called before the first import of moto's EC2."""
    import boto3.session

    regions = sorted({region, "us-east-1", "eu-west-1"})
    boto3.session.Session.get_available_regions = lambda *_, **__: list(regions)

    import moto.utilities.utils as utilities

    load = utilities.load_resource

    def load_needed(resource: str) -> Any:
        is_offer = "instance_type_offerings" in resource
        return [] if is_offer and not any(f"{name}." in resource for name in regions) else load(resource)

    utilities.load_resource = load_needed
