"""Users with a policy, and the checks of who calls: keys, their age, denied actions."""

import fnmatch
import json
from datetime import datetime, timezone
from typing import Any

from errors import CloudError
from moto import settings as moto_settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from world import WORLD

# A request may be this much older or newer than the server's clock.
SKEW_AT_MOST = 300.0


def add(body: dict[str, Any]) -> dict[str, str]:
    """A user of IAM with one inline policy, and its key."""
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    name = body["name"]
    iam.create_user("us-east-1", name)
    iam.put_user_policy(name, "lab", json.dumps(body["policy"]))
    key = iam.create_access_key(name)
    return {"access_key_id": key.access_key_id, "secret_access_key": key.secret_access_key}


def apply_iam(on: bool) -> None:
    """moto's own check: signatures, and each action against the user's policies; it ignores conditions."""
    moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if on else float("inf")


def check(service: str, action: str, authorization: str, date: str | None) -> None:
    ec2 = service == "ec2"
    kind = WORLD.troubles.get("credentials")
    keys = WORLD.settings.access_keys
    if kind == "wrong" or keys is not None and not any(f"Credential={key}/" in authorization for key in keys):
        if ec2:
            raise CloudError(
                "AuthFailure", "AWS was not able to validate the provided access credentials", 401
            )
        raise CloudError(
            "InvalidClientTokenId", "The security token included in the request is invalid.", 403
        )
    if kind == "expired":
        if ec2:
            raise CloudError("RequestExpired", "Request has expired.", 400)
        raise CloudError("ExpiredToken", "The security token included in the request is expired", 403)
    if date and WORLD.settings.skew_seconds and abs(_age(date)) > SKEW_AT_MOST:
        raise CloudError("RequestExpired", "Request has expired.", 400)
    for pattern in WORLD.troubles.get("denied", ()):
        if fnmatch.fnmatchcase(f"{service}:{action}".lower(), pattern.lower()):
            if ec2:
                raise CloudError(
                    "UnauthorizedOperation", "You are not authorized to perform this operation.", 403
                )
            raise CloudError("AccessDenied", f"User is not authorized to perform: {service}:{action}", 403)


def _age(date: str) -> float:
    signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    here = datetime.now(timezone.utc).timestamp() + WORLD.settings.skew_seconds
    return here - signed.timestamp()
