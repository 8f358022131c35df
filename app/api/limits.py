"""What remains of the limits, in the headers of draft-ietf-httpapi-ratelimit-headers."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from app.verification.policy import Quota


def quota_headers(quotas: Sequence[Quota]) -> Mapping[str, str]:
    """List each limit that a request counted against, and what remains of it."""
    if not quotas:
        return {}
    second = timedelta(seconds=1)
    policies = (f'"{quota.limit.name}";q={quota.limit.count};w={quota.limit.period // second}' for quota in quotas)
    return {
        "RateLimit-Policy": ", ".join(policies),
        "RateLimit": ", ".join(f'"{quota.limit.name}";r={quota.remaining}' for quota in quotas),
    }


def used_up_header(name: str, retry_after: int) -> Mapping[str, str]:
    """Return the limit that refused a request, and in how many seconds it has room again."""
    return {"RateLimit": f'"{name}";r=0;t={retry_after}'}
