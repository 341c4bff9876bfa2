"""Users with a policy, and the checks of who calls: keys, their age, denied actions."""

import fnmatch
import json
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Iterator

from errors import CloudError
from moto import settings as moto_settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends
from world import WORLD

# A request may be this much older or newer than the server's clock.
SKEW_AT_MOST = 300.0

# Calls without a signature, with the service they are of.
UNSIGNED = {"AssumeRoleWithWebIdentity": "sts"}


def add(body: dict[str, Any]) -> dict[str, str]:
    """A user of IAM with one inline policy, and its key."""
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    name = body["name"]
    iam.create_user("us-east-1", name)
    iam.put_user_policy(name, "lab", json.dumps(body["policy"]))
    key = iam.create_access_key(name)
    return {"access_key_id": key.access_key_id, "secret_access_key": key.secret_access_key}


def add_role(body: dict[str, Any]) -> dict[str, str]:
    """A role of IAM with one inline policy, and the keys of a session of it, as pods are given them."""
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    name = body["name"]
    role = iam.create_role(name, "{}", "/", None, "", [], "3600")
    iam.put_role_policy(name, "lab", json.dumps(body["policy"]))
    session = sts_backends[DEFAULT_ACCOUNT_ID]["aws"].assume_role(
        region_name="us-east-1",
        role_session_name="lab",
        role_arn=role.arn,
        policy="",
        duration=3600,
        external_id="",
    )
    return {
        "role_arn": role.arn,
        "access_key_id": session.access_key_id,
        "secret_access_key": session.secret_access_key,
        "session_token": session.session_token,
    }


def remove_key(body: dict[str, Any]) -> None:
    """A user's key is nobody's any more."""
    iam_backends[DEFAULT_ACCOUNT_ID]["aws"].delete_access_key(body["access_key_id"], body["user"])


def apply_iam(on: bool) -> None:
    """moto's own check: signatures, and each action against the user's policies; it ignores conditions."""
    moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if on else float("inf")


@contextmanager
def unguarded(action: str) -> Iterator[None]:
    """A call that carries no signature proves by a token who calls: moto knows none such."""
    if action in UNSIGNED:
        apply_iam(False)
    try:
        yield
    finally:
        apply_iam(WORLD.settings.iam)


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
