"""Errors as AWS answers them; raised anywhere below the front, which gives them the form of the service."""


class CloudError(Exception):
    """An answer other than success."""

    def __init__(self, code: str, message: str, status: int = 400):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def validation(message: str) -> CloudError:
    """What Auto Scaling says to nearly everything it refuses."""
    return CloudError("ValidationError", message)


def no_capacity(zone: str) -> CloudError:
    """Answered with 500, so that the SDKs try again."""
    return CloudError(
        "InsufficientInstanceCapacity",
        f"We currently do not have sufficient capacity in the Availability Zone you requested ({zone}). "
        "Our system will be working on provisioning additional capacity.",
        500,
    )
