#!/usr/bin/env python3
"""The stand-in for AWS: moto, made strict, with the part of it replaced that Dormouse depends on.

    cloud.py --port N [--region NAME]

Listens on 127.0.0.1 and says `ready` on stdout once it answers. Dials nothing. All state is in memory.
"""

import argparse
import inspect
from typing import Any

IMAGE = "ami-0d0a0000000000001"


def take_over(moto_class: type, ours: type, kept: dict[str, Any] | None = None) -> None:
    """Puts our methods in the places of moto's; moto's own go to `kept`."""
    for name, method in inspect.getmembers(ours, inspect.isfunction):
        original = getattr(moto_class, name, None)
        if kept is not None and original is not None:
            kept[name] = original
        setattr(moto_class, name, method)


def prepare(region: str) -> Any:
    import quick

    quick.prepare(region)
    import connect
    import instances
    import scaling_groups
    import scaling_members
    import scaling_processes
    import snapshots
    import tags
    import volumes
    from backends import ec2
    from front import Front
    from moto.autoscaling.responses import AutoScalingResponse
    from moto.ec2.responses.elastic_block_store import ElasticBlockStore
    from moto.ec2.responses.instances import InstanceResponse
    from moto.ec2.responses.tags import TagResponse
    from moto.ec2instanceconnect.responses import Ec2InstanceConnectResponse
    from world import WORLD

    take_over(InstanceResponse, instances.Instances, instances.MOTO)
    take_over(ElasticBlockStore, volumes.Volumes)
    take_over(ElasticBlockStore, snapshots.Snapshots)
    take_over(TagResponse, tags.Tags, tags.MOTO)
    take_over(AutoScalingResponse, scaling_groups.Groups, scaling_groups.MOTO)
    take_over(AutoScalingResponse, scaling_members.Members)
    take_over(AutoScalingResponse, scaling_processes.Processes)
    take_over(Ec2InstanceConnectResponse, connect.Connect)
    WORLD.region = region
    image = ec2(region).register_image("dormouse-lab", "what every instance of the lab boots")
    ec2(region).amis.pop(image.id)
    image.id = IMAGE
    ec2(region).amis[IMAGE] = image
    return Front()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--region", default="eu-central-1")
    options = arguments.parse_args()

    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Says nothing of single requests: /lab/calls does."""

        protocol_version = "HTTP/1.1"

        def log_request(self, *_: Any) -> None:
            pass

    server = make_server(
        "127.0.0.1", options.port, prepare(options.region), threaded=True, request_handler=Quiet
    )
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
